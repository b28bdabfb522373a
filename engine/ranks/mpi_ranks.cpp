#include "engine/ranks/mpi_ranks.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace nibblenet {
namespace {

namespace fs = std::filesystem;

const NibblenetMpi* load_module() {
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::vector<fs::path> candidates = {folder / "libnibblenet_mpi.so",
                                      folder.parent_path() / "libexec/nibblenet/libnibblenet_mpi.so"};
  if (const char* given = std::getenv("NIBBLENET_MPI_MODULE"); given != nullptr && *given != '\0') candidates = {given};
  for (const fs::path& candidate : candidates) {
    if (!fs::exists(candidate, error)) continue;
    // Open MPI loads parts of its own, which look for its symbols.
    void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) fail<UsageError>("cannot load {}: {}", candidate.string(), dlerror());
    const auto functions = reinterpret_cast<const NibblenetMpi* (*)()>(dlsym(handle, "nibblenet_mpi"));
    const NibblenetMpi* mpi = functions != nullptr ? functions() : nullptr;
    if (mpi == nullptr || mpi->version != nibblenet_mpi_version)
      fail<UsageError>("{} is of another build; build both anew", candidate.string());
    return mpi;
  }
  throw UsageError(
      "this build has no MPI: install libopenmpi-dev and build again, or start one process, without mpirun or srun");
}

/// The machine and the namespace in which this process's id holds.
std::string surroundings() {
  std::error_code error;
  return this_machine() + fs::read_symlink("/proc/self/ns/pid", error).string();
}

/// Whether a process of this machine runs: one that has ended, but was not waited for, does not.
bool runs(int64_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] != 'Z' &&
         text[name_end + 2] != 'X';
}

}  // namespace

std::string this_machine() {
  std::string name(256, '\0');
  gethostname(name.data(), name.size() - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return name.substr(0, name.find('\0')) + " " + boot;
}

MpiRanks::MpiRanks(double silence) : mpi_(load_module()), silence_(silence) {
  if (mpi_->start(&rank_, &size_) != 0) fail<Error>("MPI does not start: {}", mpi_->error());
  meet();
}

MpiRanks::~MpiRanks() {
  if (!finished_) mpi_->abort(1);
}

void MpiRanks::finish() {
  if (finished_) return;
  const double silence = std::exchange(silence_, 1e18);  // the first rank may still write for long
  barrier();
  silence_ = silence;
  finished_ = true;
  if (mpi_->finish() != 0) fail<Error>("MPI does not end: {}", mpi_->error());
}

void MpiRanks::meet() {
  const std::vector<std::string> all = gather(fmt::format("{}\n{}", getpid(), surroundings()));
  for (const std::string& other : all) {
    const bool here = other.substr(other.find('\n')) ==
                      all[static_cast<size_t>(rank_)].substr(all[static_cast<size_t>(rank_)].find('\n'));
    neighbours_.push_back(here ? std::stoll(other) : 0);
  }
}

void MpiRanks::announce_end() const {
  for (const int64_t process : neighbours_)
    if (process != 0 && process != getpid()) last_words_.tell(process);
}

void MpiRanks::expect_living() {
  int lost = -1;
  bool speaker = !last_words_.heard();
  for (int other = 0; other < static_cast<int>(neighbours_.size()); ++other) {
    const int64_t process = neighbours_[static_cast<size_t>(other)];
    if (other == rank_) continue;
    if (process != 0 && !runs(process))
      lost = lost < 0 ? other : lost;
    else if (other < rank_)
      speaker = false;
  }
  if (lost >= 0)
    throw RankLost(fmt::format("rank {} of {} (process {}) has ended, so all stop; what was saved before stays", lost,
                               size_, neighbours_[static_cast<size_t>(lost)]),
                   speaker);
}

void MpiRanks::expect_present(double seconds) {
  expect_living();
  if (seconds > silence_) silent(-1);
}

/// Throws for a rank that has been silent for too long; -1: it is not known which.
void MpiRanks::silent(int peer) {
  throw RankLost(fmt::format("{} has been silent for {:g} s, so all stop; --rank-timeout allows more",
                             peer < 0 ? "a rank" : fmt::format("rank {}", peer), silence_),
                 !last_words_.heard() && (peer == 0 ? rank_ == 1 : rank_ == 0),
                 !last_words_.heard() && peer < 0 && rank_ > 0);  // it may be the first that is silent
}

void MpiRanks::exchange(std::span<const Sent> sent, std::span<const Received> received) {
  const auto as_message = [](int peer, const std::byte* data, size_t bytes) {
    return NibblenetMessage{peer, const_cast<std::byte*>(data), bytes};
  };
  std::vector<NibblenetMessage> sends, receives;
  for (const Sent& message : sent) sends.push_back(as_message(message.to, message.bytes.data(), message.bytes.size()));
  for (const Received& message : received)
    receives.push_back(as_message(message.from, message.bytes.data(), message.bytes.size()));
  if (mpi_->begin(sends.data(), static_cast<int32_t>(sends.size()), receives.data(),
                  static_cast<int32_t>(receives.size())) != 0)
    fail<Error>("MPI cannot send: {}", mpi_->error());
  wait();
}

void MpiRanks::add_up(std::span<float> values) {
  if (mpi_->begin_sum(values.data(), values.size()) != 0) fail<Error>("MPI cannot add up: {}", mpi_->error());
  wait();
}

/// Polls: MPI has no wait with an end. Sleeps between, so that ranks may share a core.
void MpiRanks::wait() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  Clock::time_point looked = start;
  for (int64_t polls = 0;; ++polls) {
    int32_t pending = 0, peer = 0;
    if (mpi_->poll(&pending, &peer) != 0) {
      expect_living();
      fail<Error>("MPI lost {}: {}", peer < 0 ? "a rank" : fmt::format("rank {}", peer), mpi_->error());
    }
    if (pending == 0) return;
    const Clock::time_point now = Clock::now();
    if (now - looked > std::chrono::milliseconds(50)) {
      expect_living();
      looked = now;
    }
    if (std::chrono::duration<double>(now - start).count() > silence_) silent(peer);
    if (polls > 200) std::this_thread::sleep_for(std::chrono::microseconds(polls < 2000 ? 50 : 500));
  }
}

}  // namespace nibblenet
