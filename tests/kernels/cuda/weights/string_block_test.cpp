#include "kernels/cuda/weights/string_block.h"

#include <gtest/gtest.h>

#include <set>

#include "engine/core/random.h"
#include "kernels/cuda/weights/weight_traits.h"
#include "tests/kernels/schemes.h"

namespace nibblenet {
namespace {

using testing::random_strings;

const std::vector<int> every_rate = {2, 3, 4, 5, 6, 8, 12, 16};  // quarters of a bit

TEST(StringBlock, EveryByteHasOnePlace) {
  for (const int quarters : every_rate)
    for (const int64_t channels : {1, 64, 100, 130, 192, 256}) {
      const TrellisLayout layout{channels, 16, quarters};
      const StringBlocks blocks(layout);
      EXPECT_EQ(blocks.bytes_each(0), layout.string_bytes());
      std::set<int> seen;
      for (int column = 0; column < StringBlocks::columns; ++column)
        for (int i = 0; i < layout.string_bytes(0); ++i)
          seen.insert(StringBlocks::byte_of_string(column, i, blocks.lanes(0), quarters));
      EXPECT_EQ(static_cast<int64_t>(seen.size()), layout.string_bytes()) << quarters << " quarters, " << channels;
      EXPECT_EQ(*seen.begin(), 0);
      EXPECT_EQ(*seen.rbegin(), layout.string_bytes() - 1);
    }
}

TEST(StringBlock, ALaneReadsWholeAlignedVectors) {
  for (const int quarters : every_rate)
    for (const int lanes : {8, 16, 24, 32})
      for (int lane = 0; lane < lanes; ++lane)
        for (int word = 0; word < quarters; ++word) {
          // Fours, then a pair, then one.
          const int width = word < quarters / 4 * 4 ? 4 : quarters % 4 >= 2 && word < quarters / 4 * 4 + 2 ? 2 : 1;
          const int first = StringBlocks::byte_of_word(word - word % 4 % width, lane, lanes, quarters);
          EXPECT_EQ(first % (4 * width), 0);
          EXPECT_EQ(StringBlocks::byte_of_word(word, lane, lanes, quarters), first + word % 4 % width * 4);
        }
}

TEST(StringBlock, ColumnsAreInDeviceOrder) {
  // Every byte of a string is its input's number, so that places show.
  for (const Shape& shape : {Shape{300, 32}, Shape{70, 16, 3, 3}, Shape{64, 8, 2, 2}})
    for (const int quarters : every_rate) {
      const TrellisLayout layout{shape[0], shape.inner_elements(), quarters};
      std::vector<uint8_t> strings(static_cast<size_t>(layout.bytes()));
      for (int64_t s = 0; s < layout.sequences(); ++s)
        for (int64_t input = 0; input < layout.inputs; ++input)
          std::fill_n(strings.begin() + layout.offset(s, input), layout.string_bytes(s), static_cast<uint8_t>(input));
      const std::vector<uint8_t> result = to_string_blocks(strings, shape, quarters);
      ASSERT_EQ(result.size(), strings.size());
      const StringBlocks blocks(layout);
      const int64_t taps = layout.inputs / shape[1];
      for (int64_t s = 0; s < layout.sequences(); ++s)
        for (int64_t k = 0; k < layout.inputs; ++k)
          for (int i = 0; i < layout.string_bytes(s); ++i) {
            const int64_t at = blocks.offset(s, k / 16) +
                               StringBlocks::byte_of_string(static_cast<int>(k % 16), i, blocks.lanes(s), quarters);
            ASSERT_EQ(result[static_cast<size_t>(at)], static_cast<uint8_t>(k % shape[1] * taps + k / shape[1]));
          }
    }
}

TEST(StringBlock, OnlyWholeBlocksTakeThem) {
  const auto layout = [](const Shape& shape) { return best_layout(random_strings(shape, parse_scheme("trellis:2"))); };
  EXPECT_EQ(layout({64, 16}), WeightLayout::strings);
  EXPECT_EQ(layout({63, 16}), WeightLayout::channels);
  EXPECT_EQ(layout({300, 64, 3, 3}), WeightLayout::strings);
  EXPECT_EQ(layout({64, 3, 11, 11}), WeightLayout::channels);
  EXPECT_EQ(layout({64, 24}), WeightLayout::channels);
}

}  // namespace
}  // namespace nibblenet
