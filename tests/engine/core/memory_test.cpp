#include "engine/core/memory.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

namespace nibblenet {
namespace {

TEST(MemoryMeter, CountsLivePeakAndLargestByCategory) {
  HostMemory memory;
  const MemoryMeter& meter = memory.meter();
  {
    const Buffer<float> codes(memory, 10, MemoryCategory::codes);
    const Buffer<uint8_t> scales(memory, 7, MemoryCategory::scales);
    EXPECT_EQ(codes.bytes(), 40U);
    EXPECT_EQ(meter.live(MemoryCategory::codes), 40U);
    EXPECT_EQ(meter.live_total(), 47U);
  }
  {
    const Buffer<float> more(memory, 5, MemoryCategory::codes);
    EXPECT_EQ(meter.live(MemoryCategory::codes), 20U);
  }
  EXPECT_EQ(meter.live_total(), 0U);
  EXPECT_EQ(meter.peak_total(), 47U);
  EXPECT_EQ(meter.peak(MemoryCategory::codes), 40U);
  EXPECT_EQ(meter.largest(MemoryCategory::codes), 40U);
  EXPECT_EQ(meter.peak(MemoryCategory::activations), 0U);
}

TEST(MemoryMeter, IsExactUnderThreads) {
  HostMemory memory;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&memory] {
        for (int j = 0; j < 1000; ++j) const Buffer<uint8_t> buffer(memory, 16, MemoryCategory::workspace);
      });
  }
  EXPECT_EQ(memory.meter().live_total(), 0U);
  EXPECT_GE(memory.meter().peak_total(), 16U);
  EXPECT_LE(memory.meter().peak_total(), 64U);
}

TEST(Buffer, OwnsItsMemoryOnce) {
  HostMemory memory;
  Buffer<int32_t> first(memory, 3, MemoryCategory::data);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data()) % 64, 0U);
  Buffer<int32_t> second(std::move(first));
  EXPECT_EQ(memory.meter().live_total(), 12U);
  second = Buffer<int32_t>(memory, 4, MemoryCategory::data);
  EXPECT_EQ(memory.meter().live_total(), 16U);
  second = Buffer<int32_t>();
  EXPECT_EQ(memory.meter().live_total(), 0U);
}

TEST(Buffer, MayBeEmpty) {
  HostMemory memory;
  const Buffer<float> nothing(memory, 0, MemoryCategory::biases);
  EXPECT_EQ(nothing.size(), 0U);
}

TEST(MemoryCategory, EveryOneHasItsOwnName) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < memory_category_count; ++i) names.insert(to_string(static_cast<MemoryCategory>(i)));
  EXPECT_EQ(names.size(), memory_category_count);
  EXPECT_FALSE(names.contains(""));
}

}  // namespace
}  // namespace nibblenet
