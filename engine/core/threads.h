#pragma once

#include <filesystem>
#include <optional>

namespace nibblenet {

/// How many threads work takes that is not told: what OMP_NUM_THREADS says, else as many as there
/// are processors that this process may run on, within the quota of its cgroup. At least 1.
unsigned default_threads();

/// Whole processors within the quota of processor time of this process's cgroup and those above it,
/// version 1 or 2; nothing where there is no quota. `membership` and `root` differ in tests only.
std::optional<unsigned> quota_of_processors(const std::filesystem::path& membership = "/proc/self/cgroup",
                                            const std::filesystem::path& root = "/sys/fs/cgroup");

}  // namespace nibblenet
