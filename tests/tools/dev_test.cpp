#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/tools/run.h"

// tools/dev with a cmake that only writes down what it is told.

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

class Dev : public ::testing::Test {
 protected:
  void SetUp() override {
    add_program("cmake", "echo \"$@\" >>" + told().string() + "; [[ $1 != --build ]]");
    add_program("dpkg-query", "echo installed");
  }

  void add_program(const std::string& name, const std::string& commands) const {
    write_text(folder_.path() / name, "#!/usr/bin/env bash\n" + commands + "\n");
    fs::permissions(folder_.path() / name, fs::perms::owner_all);
  }
  fs::path told() const { return folder_.path() / "told"; }

  /// What cmake was told.
  std::string run(const std::string& command, const std::string& compiler) const {
    add_program("compiler", "echo " + compiler);
    const Outcome outcome = Child({NIBBLENET_SOURCE "/tools/dev", command}, folder_.path(),
                                  {"PATH=" + folder_.path().string() + ":" + std::getenv("PATH"), "CXX=compiler"},
                                  (folder_.path() / "scratch").string())
                                .wait();
    EXPECT_EQ(outcome.code, 1) << outcome;
    return read_text(told());
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(Dev, TheDemoBuildsEveryTool) { EXPECT_THAT(run("demo", "12"), HasSubstr("--preset cpu --target tools/all\n")); }

TEST_F(Dev, WarningsOfNewerCompilersAreNoErrors) {
  EXPECT_THAT(run("build", "12"), Not(HasSubstr("WERROR")));
  EXPECT_THAT(run("build", "14"), Not(HasSubstr("WERROR")));
  EXPECT_THAT(run("build", "15"), HasSubstr("--preset cpu -DNIBBLENET_WERROR=OFF"));
}

}  // namespace
}  // namespace nibblenet::testing
