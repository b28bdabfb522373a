#include "engine/core/threads.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace nibblenet {
namespace {

namespace fs = std::filesystem;

/// Processors by one cgroup's quota and period in microseconds; nothing without a quota.
std::optional<double> quota_in(const fs::path& folder) {
  double quota = 0, period = 0;
  if (std::ifstream both(folder / "cpu.max"); both >> quota >> period && quota > 0 && period > 0)
    return quota / period;  // version 2; "max 100000" is no quota
  std::ifstream quota_file(folder / "cpu.cfs_quota_us"), period_file(folder / "cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
  return std::nullopt;
}

}  // namespace

std::optional<unsigned> quota_of_processors(const fs::path& membership, const fs::path& root) {
  std::optional<double> least;
  std::ifstream lines(membership);
  for (std::string line; std::getline(lines, line);) {  // "ID:CONTROLLERS:/PATH"; version 2 names no controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // In a container the path may be the host's, while `root` is the container's own cgroup.
    for (fs::path path = fs::path(line.substr(second + 1)).relative_path();; path = path.parent_path()) {
      const std::optional<double> quota = quota_in(root / controllers / path);
      if (quota && (!least || *quota < *least)) least = quota;
      if (path.empty()) break;
    }
  }
  // Rounded down: the others would wait for a thread that the quota has no time for.
  if (!least) return std::nullopt;
  return static_cast<unsigned>(std::clamp(*least, 1.0, 4096.0));
}

unsigned default_threads() {
  if (const char* variable = std::getenv("OMP_NUM_THREADS"); variable != nullptr)
    if (const int number = std::atoi(variable); number > 0) return static_cast<unsigned>(std::min(number, 1024));
  // OpenMP counted the processors before it bound this thread to one of them (OMP_PROC_BIND).
  const auto processors = static_cast<unsigned>(std::max(1, omp_get_num_procs()));
  return std::min(processors, quota_of_processors().value_or(4096));
}

}  // namespace nibblenet
