#include "engine/quant/bits.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/core/random.h"
#include "tests/engine/quant/fields.h"

namespace nibblenet {
namespace {

TEST(Bits, SizesRoundUpToBytesAndChannelsToSixteen) {
  EXPECT_EQ(packed_bytes(0, 4), 0);
  EXPECT_EQ(packed_bytes(3, 3), 2);
  EXPECT_EQ(packed_bytes(9216, 3), 3456);
  EXPECT_EQ(channel_stride(1, 2), 16);
  EXPECT_EQ(channel_stride(32, 4), 16);
  EXPECT_EQ(channel_stride(33, 4), 32);
}

TEST(Bits, FieldsAreLittleEndianAndDense) {
  // 1, 2, …, 8 in 3 bits (8 wraps to 0 in the last field): 001 010 011 100 101 110 111 000, lowest
  // first.
  std::vector<uint8_t> bytes(3);
  for (uint32_t i = 0; i < 8; ++i) testing::write_field(bytes.data(), i, 3, (i + 1) & 7U);
  EXPECT_EQ(bytes, (std::vector<uint8_t>{0xD1, 0x58, 0x1F}));
}

TEST(Bits, EveryWidthReadsWhatWasWritten) {
  for (int bits = 1; bits <= max_field_bits; ++bits)
    for (const int64_t count : {1, 7, 8, 9, 127}) {
      SCOPED_TRACE(::testing::Message() << count << " fields of " << bits << " bits");
      const auto bytes = static_cast<size_t>(packed_bytes(count, bits));
      std::vector<uint8_t> one_by_one(bytes);
      std::vector<uint8_t> in_order(bytes, 0xFF);
      FieldWriter writer(in_order.data());
      Random random(static_cast<uint64_t>(bits), static_cast<uint64_t>(count));
      std::vector<uint32_t> values;
      for (int64_t i = 0; i < count; ++i) {
        values.push_back(static_cast<uint32_t>(random.below(uint64_t{1} << bits)));
        testing::write_field(one_by_one.data(), i, bits, values.back());
        writer.put(values.back(), bits);
      }
      writer.finish();
      EXPECT_EQ(in_order, one_by_one);
      for (int64_t i = 0; i < count; ++i)
        ASSERT_EQ(read_field(in_order.data(), i, bits), values[static_cast<size_t>(i)]);
    }
}

}  // namespace
}  // namespace nibblenet
