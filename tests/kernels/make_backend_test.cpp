#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string refusal(const std::string& device, int threads) {
  try {
    make_backend(device, threads);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MakeBackend, KnowsTheProcessor) {
  for (const std::string device : {"cpu", "auto"}) EXPECT_NO_THROW(make_backend(device, 1)) << device;
  EXPECT_EQ(make_backend("cpu", 1)->name(), "cpu");
}

TEST(MakeBackend, BackendsTakeTurnsWithTheirOwnThreads) {
  CpuBackend one(1), two(2);
  const int of_two = omp_get_max_threads();
  one.take_turn();
  EXPECT_EQ(omp_get_max_threads(), 1);
  two.take_turn();
  EXPECT_EQ(omp_get_max_threads(), of_two);
}

TEST(MakeBackend, RefusesADeviceThatIsNotThereInOneLine) {
  struct Case {
    std::string device;
    int threads;
    std::string message;
  };
  std::vector<Case> cases = {{"gpu", 0, "unknown device 'gpu'; supported: auto, cpu, cuda, cudnn"},
                             {"", 0, "unknown device ''"},
                             {"CPU", 0, "unknown device 'CPU'"},
                             {"cpu", -1, "--threads -1"}};
  if (make_backend("auto", 1)->name() != "cuda") {
    cases.push_back({"cuda", 0, "--device cuda: "});
    cases.push_back({"cudnn", 0, "--device cudnn: "});
  }
  for (const Case& c : cases) {
    EXPECT_THAT(refusal(c.device, c.threads), HasSubstr(c.message));
    EXPECT_THAT(refusal(c.device, c.threads), Not(HasSubstr("\n")));
  }
}

TEST(MakeBackend, HasAsManyThreadsAsAskedFor) {
  EXPECT_THAT(make_backend("cpu", 3)->description(), HasSubstr("CPU, 3 threads"));
  EXPECT_THAT(make_backend("cpu", 0)->description(), Not(HasSubstr(" 0 threads")));
}

TEST(MakeBackend, AutomaticIsTheGpuOrSaysWhyNot) {
  EXPECT_EQ(make_backend("auto", 1)->name(), cuda_unusable() ? "cpu" : "cuda");
  if (cuda_unusable()) {
    EXPECT_THAT(*cuda_unusable(), Not(HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace nibblenet
