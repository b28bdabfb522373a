#include "engine/core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace nibblenet {
namespace {

TEST(ParallelFor, DoesEverythingOnce) {
  for (const size_t count : {0UL, 1UL, 7UL, 16UL, 17UL, 1000UL})
    for (const unsigned threads : {1U, 2U, 9U})
      for (const size_t stride : {1UL, 16UL}) {
        std::vector<std::atomic<int>> calls(count);
        parallel_for(count, threads, stride, [&](size_t i) { ++calls[i]; });
        for (const auto& times : calls) EXPECT_EQ(times, 1);
      }
}

TEST(ParallelFor, RethrowsTheFirstErrorByIndex) {
  for (int run = 0; run < 50; ++run) {
    try {
      parallel_for(100, 4, 1, [](size_t i) {
        if (i % 10 == 7) throw std::runtime_error(std::to_string(i));
      });
      FAIL() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "7");
    }
  }
}

}  // namespace
}  // namespace nibblenet
