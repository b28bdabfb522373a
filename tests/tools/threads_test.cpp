#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// A cgroup of our own, of version 1 or 2, where this process may make one.
class Cgroup {
 public:
  Cgroup() {
    const fs::path root = "/sys/fs/cgroup";
    second_ = fs::exists(root / "cgroup.controllers");
    folder_ = root / (second_ ? "" : "cpu") / fmt::format("nibblenet-test-{}", getpid());
    std::error_code error;
    fs::create_directory(folder_, error);
  }
  ~Cgroup() {
    std::error_code error;
    fs::remove(folder_, error);
  }
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  const fs::path& folder() const { return folder_; }
  /// Of 100,000 microseconds. False where the kernel does not take it.
  bool set_quota(int microseconds) const {
    std::ofstream file(folder_ / (second_ ? "cpu.max" : "cpu.cfs_quota_us"));
    file << microseconds << std::flush;
    return file.good();
  }

 private:
  bool second_ = false;
  fs::path folder_;
};

class ThreadsTest : public ToolsTest {};

TEST_F(ThreadsTest, FollowTheQuotaOfARealCgroup) {
  const Cgroup group;
  if (!group.set_quota(50'000)) GTEST_SKIP() << "no cgroup with a quota of processors can be made here";
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  for (const int quota : {50'000, 100'000, 250'000}) {
    ASSERT_TRUE(group.set_quota(quota));
    std::vector<std::string> words = command("eval small.safetensors --data standin --limit 10");
    const std::string join = "unset OMP_NUM_THREADS; echo $$ >" + (group.folder() / "cgroup.procs").string();
    words.insert(words.begin(), {"/bin/sh", "-c", join + " && exec \"$@\"", "sh"});
    const Outcome outcome = Child(words, at(""), environment_, at(".group").string()).wait();
    EXPECT_EQ(outcome.code, 0) << outcome;
    const int threads = std::clamp(quota / 100'000, 1, CPU_COUNT(&set));
    EXPECT_NE(outcome.out.find(fmt::format(" {} thread", threads)), std::string::npos) << outcome;
  }
}

/// OpenMP binds a process's first thread to one processor before main() begins.
TEST_F(ThreadsTest, AreNotFewerWhereOpenMpBindsThem) {
  std::erase_if(environment_, [](const std::string& each) { return each.starts_with("OMP_NUM_THREADS="); });
  const auto threads = [&] {
    const std::string out = succeed("eval small.safetensors --data standin --limit 10").out;
    const size_t begin = out.find("CPU, ");
    return out.substr(begin, out.find(" thread", begin) - begin);
  };
  const std::string unbound = threads();
  environment_.emplace_back("OMP_PROC_BIND=true");
  EXPECT_EQ(threads(), unbound);
}

}  // namespace
}  // namespace nibblenet::testing
