#include "engine/core/threads.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/golden.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// A /proc/self/cgroup and a /sys/fs/cgroup of our own.
class QuotaTest : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    const fs::path path = folder_.path() / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text << '\n';
  }
  std::optional<unsigned> quota() const {
    return quota_of_processors(folder_.path() / "membership", folder_.path() / "root");
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(QuotaTest, ThereIsNoneWithoutCgroups) {
  EXPECT_EQ(quota(), std::nullopt);
  write("membership", "nonsense\n:\n::\n0::/gone");
  EXPECT_EQ(quota(), std::nullopt);
}

TEST_F(QuotaTest, Version2) {
  write("membership", "0::/a/b");
  write("root/a/b/cpu.max", "max 100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("root/a/b/cpu.max", "400000 100000");
  EXPECT_EQ(quota(), 4U);
  write("root/a/cpu.max", "250000 100000");
  EXPECT_EQ(quota(), 2U) << "the folder above has less, and half a processor is no thread";
  write("root/cpu.max", "20000 100000");
  EXPECT_EQ(quota(), 1U) << "at least one";
}

TEST_F(QuotaTest, Version1) {
  write("membership", "9:name=systemd:/x\n4:cpu,cpuacct:/docker/1234\n3:cpuset:/y\n0::/z");
  write("root/cpuset/y/cpu.cfs_quota_us", "1");
  write("root/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  write("root/cpu,cpuacct/cpu.cfs_period_us", "100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("root/cpu,cpuacct/cpu.cfs_quota_us", "300000");
  EXPECT_EQ(quota(), 3U) << "a container sees its own cgroup as the root";
  write("root/cpu,cpuacct/docker/1234/cpu.cfs_quota_us", "100000");
  write("root/cpu,cpuacct/docker/1234/cpu.cfs_period_us", "50000");
  EXPECT_EQ(quota(), 2U);
}

TEST(DefaultThreads, FollowTheEnvironmentAndTheAffinityMask) {
  const char* given = std::getenv("OMP_NUM_THREADS");
  const std::string before = given != nullptr ? given : "";
  setenv("OMP_NUM_THREADS", "3,2", 1);
  EXPECT_EQ(default_threads(), 3U);
  unsetenv("OMP_NUM_THREADS");
  cpu_set_t all, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  EXPECT_LE(default_threads(), static_cast<unsigned>(CPU_COUNT(&all)));
  CPU_ZERO(&one);
  for (size_t processor = 0; CPU_COUNT(&one) == 0; ++processor)
    if (CPU_ISSET(processor, &all)) CPU_SET(processor, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(default_threads(), 1U);
  sched_setaffinity(0, sizeof all, &all);
  if (given != nullptr) setenv("OMP_NUM_THREADS", before.c_str(), 1);
}

}  // namespace
}  // namespace nibblenet::testing
