#pragma once

#include <filesystem>
#include <optional>

namespace nibblenet {

/// The default number of threads, at least 1: OMP_NUM_THREADS, else the processors that this
/// process may run on, within the quota of its cgroup.
unsigned default_threads();

/// The quota of processor time of this process, in whole processors: the smallest of its cgroup and
/// those above it, in version 1 or 2. Nothing when there is no quota. Only tests pass other values
/// of `membership` and `root`.
std::optional<unsigned> quota_of_processors(const std::filesystem::path& membership = "/proc/self/cgroup",
                                            const std::filesystem::path& root = "/sys/fs/cgroup");

}  // namespace nibblenet
