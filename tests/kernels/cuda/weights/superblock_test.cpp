#include "kernels/cuda/weights/superblock.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <set>

#include "engine/core/random.h"
#include "engine/quant/bits.h"
#include "tests/engine/quant/fields.h"

namespace nibblenet {
namespace {

struct MatrixSize {
  int64_t rows;
  int64_t columns;
};
const std::vector<MatrixSize> sizes = {{1, 1}, {63, 65}, {64, 64}, {65, 63}, {10, 1024}, {131, 7}, {128, 192}};

/// Random codes, channel by channel, with padding of zeros.
std::vector<uint8_t> random_codes(const MatrixSize& size, int bits) {
  Random random(static_cast<uint64_t>(bits));
  const int64_t stride = channel_stride(size.columns, bits);
  std::vector<uint8_t> codes(static_cast<size_t>(size.rows * stride));
  for (int64_t row = 0; row < size.rows; ++row)
    for (int64_t column = 0; column < size.columns; ++column)
      testing::write_field(codes.data() + row * stride, column, bits, static_cast<uint32_t>(random.below(1U << bits)));
  return codes;
}

TEST(Superblock, EveryBitHasOnePlace) {
  for (int bits = 2; bits <= 8; ++bits) {
    const Superblocks layout(64, 64, bits);
    EXPECT_EQ(layout.bytes(), 512 * bits);
    std::set<std::pair<int, int>> seen;  // byte of a word, bit in its lower half
    for (int row = 0; row < 64; ++row)
      for (int column = 0; column < 64; column += 2) {
        const auto place = Superblocks::place(row, column);
        const FieldPlace field = field_place(place.value, bits);
        for (int bit = 0; bit < bits; ++bit) {
          const bool in_next = bit < field.rest;
          const int word = layout.byte_of_word(place, field.word + in_next);
          ASSERT_LT(word, layout.bytes());
          EXPECT_TRUE(seen.emplace(word, in_next ? bit : field.shift + bit - field.rest).second)
              << bits << " bits, row " << row << ", column " << column;
        }
      }
    EXPECT_EQ(seen.size(), size_t{64} * 32 * static_cast<size_t>(bits));
  }
}

TEST(Superblock, LanesOwnWhatTheTensorCoresGiveThem) {
  // PTX ISA, mma.m16n8k16: a lane's rows are lane / 4 and 8 below, and its columns of x neighbours
  // of each other.
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < 64; column += 2) {
      const auto place = Superblocks::place(row, column);
      EXPECT_EQ(place.lane / 4, row % 8);
      EXPECT_EQ(place.lane % 4, column / 16);
      EXPECT_EQ(place.value / 4, row / 16);
      EXPECT_EQ(place.value % 2, row % 16 / 8);
    }
}

TEST(Superblock, PackingAndUnpackingAreInverses) {
  for (int bits = 2; bits <= 8; ++bits)
    for (const MatrixSize& size : sizes) {
      const std::vector<uint8_t> codes = random_codes(size, bits);
      const std::vector<uint8_t> blocks = to_superblocks(codes, size.rows, size.columns, bits);
      EXPECT_EQ(static_cast<int64_t>(blocks.size()), Superblocks(size.rows, size.columns, bits).bytes());
      EXPECT_EQ(from_superblocks(blocks, size.rows, size.columns, bits), codes)
          << bits << " bits, " << size.rows << " x " << size.columns;
    }
}

TEST(Superblock, PaddingIsZeros) {
  // A matrix of ones sets the bits of its codes and no others.
  for (int bits = 2; bits <= 8; ++bits) {
    const MatrixSize size = {65, 63};
    std::vector<uint8_t> codes(static_cast<size_t>(size.rows * channel_stride(size.columns, bits)));
    for (int64_t row = 0; row < size.rows; ++row)
      for (int64_t column = 0; column < size.columns; ++column)
        testing::write_field(codes.data() + row * channel_stride(size.columns, bits), column, bits, (1U << bits) - 1U);
    int64_t set = 0;
    for (const uint8_t byte : to_superblocks(codes, size.rows, size.columns, bits)) set += std::popcount(byte);
    EXPECT_EQ(set, size.rows * size.columns * bits);
  }
}

TEST(Superblock, TheNetworksMatricesNeedNoPadding) {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const MatrixSize& size : {MatrixSize{4096, 9216}, {4096, 4096}, {1024, 4096}, {192, 1600}}) {
      EXPECT_TRUE(superblocks_fit(size.rows, size.columns, bits));
      EXPECT_EQ(Superblocks(size.rows, size.columns, bits).bytes() * 8, size.rows * size.columns * bits);
    }
    EXPECT_FALSE(superblocks_fit(10, 1024, bits));
  }
}

}  // namespace
}  // namespace nibblenet
