#include "engine/quant/entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/core/random.h"
#include "engine/quant/bits.h"
#include "engine/quant/entropy_model.h"
#include "engine/quant/rans.h"
#include "tests/engine/quant/fields.h"

namespace nibblenet {
namespace {

using Bytes = std::vector<uint8_t>;
using Draw = std::function<uint32_t(Random&, int64_t channel)>;

/// Packed codes, each drawn by `draw`.
Bytes packed_codes(const CodeLayout& layout, const Draw& draw, uint64_t seed = 1) {
  Bytes codes(static_cast<size_t>(layout.bytes()));
  Random random(seed);
  for (int64_t channel = 0; channel < layout.channels; ++channel)
    for (int64_t i = 0; i < layout.elements; ++i)
      testing::write_field(codes.data() + channel * layout.stride(), i, layout.bits, draw(random, channel));
  return codes;
}

/// Half of the codes are 0, a quarter are 1, …
uint32_t geometric(Random& random, int bits) {
  const uint64_t word = random.bits() | uint64_t{1} << 63;
  return static_cast<uint32_t>(std::min(__builtin_ctzll(word), (1 << bits) - 1));
}

double order0_bytes(const Bytes& codes, const CodeLayout& layout) {
  std::vector<double> counts(256);
  for (int64_t channel = 0; channel < layout.channels; ++channel)
    for (int64_t i = 0; i < layout.elements; ++i)
      ++counts[read_field(codes.data() + channel * layout.stride(), i, layout.bits)];
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double bits = 0;
  for (const double count : counts)
    if (count > 0) bits += count * std::log2(total / count);
  return bits / 8;
}

void expect_round_trip(const Bytes& codes, const CodeLayout& layout) {
  const Bytes stream = encode_codes(codes, layout);
  EXPECT_EQ(decode_codes(stream, layout, "stream"), codes);
}

std::string refusal(const Bytes& stream, const CodeLayout& layout) {
  try {
    decode_codes(stream, layout, "W.codes.rans");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

struct Distribution {
  const char* name;
  std::function<uint32_t(Random&, int64_t channel, int bits)> draw;
};
const std::vector<Distribution> distributions = {
    {"first", [](Random&, int64_t, int) { return 0U; }},
    {"last", [](Random&, int64_t, int bits) { return (1U << bits) - 1; }},
    {"uniform", [](Random& random, int64_t, int bits) { return static_cast<uint32_t>(random.below(1ULL << bits)); }},
    {"skewed", [](Random& random, int64_t, int bits) { return geometric(random, bits); }},
    {"two symbols", [](Random& random, int64_t, int bits) { return random.below(2) == 0 ? 0U : (1U << bits) - 1; }},
    {"rare", [](Random& random, int64_t, int bits) { return random.below(1000) == 0 ? (1U << bits) - 1 : 0U; }},
    {"by channel",
     [](Random& random, int64_t channel, int bits) { return channel % 3 == 0 ? geometric(random, bits) : 0U; }},
};

class EntropyWidth : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bits, EntropyWidth, ::testing::Range(1, 9));

TEST_P(EntropyWidth, RoundTripsEveryDistributionAndShape) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{0, 0},   {0, 5},     {5, 0},   {1, 1},    {1, 7},
                                                           {1, 8},   {3, 9},     {17, 64}, {64, 363}, {41, 43},
                                                           {300, 2}, {2, 70'000}};  // longer than a run
  for (const auto& [channels, elements] : shapes)
    for (const Distribution& distribution : distributions) {
      const CodeLayout layout{channels, elements, GetParam()};
      SCOPED_TRACE(::testing::Message() << channels << " x " << elements << " " << distribution.name);
      expect_round_trip(
          packed_codes(
              layout, [&](Random& random, int64_t channel) { return distribution.draw(random, channel, layout.bits); }),
          layout);
    }
}

TEST_P(EntropyWidth, LargeStreamsComeWithinOnePercentOfTheEntropy) {
  const CodeLayout layout{64, 20'000, GetParam()};
  for (const Distribution& distribution : distributions) {
    SCOPED_TRACE(distribution.name);
    const Bytes codes = packed_codes(
        layout, [&](Random& random, int64_t channel) { return distribution.draw(random, channel, layout.bits); });
    // Tables and class numbers, and the 68 bytes that every 256 KiB of codes cost even when they
    // say nothing.
    const double side = 1024 + 68.0 * (std::ceil(static_cast<double>(codes.size()) / (1 << 18)) + 1);
    EXPECT_LE(static_cast<double>(encode_codes(codes, layout).size()), 1.01 * order0_bytes(codes, layout) + side);
  }
}

TEST(Entropy, ChannelsThatDifferAreCodedBelowTheOrder0Entropy) {
  // Half of the channels are constant: one bit a code less is needed for them than the common
  // histogram says.
  const CodeLayout layout{128, 5'000, 4};
  const Bytes codes = packed_codes(layout, [](Random& random, int64_t channel) {
    return channel % 2 == 0 ? 5U : static_cast<uint32_t>(random.below(16));
  });
  const double needed = 64.0 * 5'000 * 4 / 8;
  EXPECT_LT(static_cast<double>(encode_codes(codes, layout).size()), 1.01 * needed);
  EXPECT_GT(order0_bytes(codes, layout), 1.4 * needed);
}

TEST(Entropy, InputsThatDifferAreCodedInputByInput) {
  const CodeLayout layout{300, 70, 3};
  Bytes codes(static_cast<size_t>(layout.bytes()));
  Random random(3);
  for (int64_t channel = 0; channel < layout.channels; ++channel)
    for (int64_t i = 0; i < layout.elements; ++i)
      testing::write_field(codes.data() + channel * layout.stride(), i, 3,
                           i < 35 ? 5U : static_cast<uint32_t>(random.below(8)));
  Bytes stream = encode_codes(codes, layout);
  EXPECT_EQ(stream[3], 1) << "transposed";
  EXPECT_LT(static_cast<double>(stream.size()), 1.1 * 300 * 35 * 3 / 8);
  EXPECT_EQ(decode_codes(stream, layout, "stream"), codes);
  stream[3] = 2;
  EXPECT_NE(refusal(stream, layout).find("2 names no order"), std::string::npos);
  stream[3] = 0;
  EXPECT_NE(refusal(stream, layout), "");
}

TEST(Entropy, TransposingTwiceGivesTheSameCodes) {
  for (const auto& [channels, elements] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 200}, {65, 64}, {9, 1}})
    for (int bits = 1; bits <= 8; ++bits) {
      const CodeLayout layout{channels, elements, bits};
      const Bytes codes = packed_codes(
          layout, [&](Random& random, int64_t) { return static_cast<uint32_t>(random.below(1ULL << bits)); });
      const Bytes turned = transposed(codes, layout);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < elements; ++i)
          ASSERT_EQ(read_field(turned.data() + i * layout.transposed().stride(), c, bits),
                    read_field(codes.data() + c * layout.stride(), i, bits));
      EXPECT_EQ(transposed(turned, layout.transposed()), codes);
    }
}

TEST(Entropy, NeighboursThatDependOnEachOtherAreCodedBelowTheOrder0Entropy) {
  const CodeLayout layout{16, 10'000, 4};
  uint32_t previous = 0;
  bool again = false;
  const Bytes codes = packed_codes(layout, [&](Random& random, int64_t) {
    if (!again) previous = static_cast<uint32_t>(random.below(16));
    again = !again;
    return previous;
  });
  EXPECT_LT(static_cast<double>(encode_codes(codes, layout).size()), 0.51 * order0_bytes(codes, layout));
}

TEST(Entropy, ConstantTensorsCostAlmostNothing) {
  const CodeLayout layout{64, 363, 4};
  EXPECT_LT(encode_codes(packed_codes(layout, [](Random&, int64_t) { return 9U; }), layout).size(), 180U);
}

TEST(Entropy, WhatDoesNotShrinkIsNotCompressed) {
  const CodeLayout layout{8, 4'096, 8};
  const auto uniform = [](Random& random, int64_t) { return static_cast<uint32_t>(random.below(256)); };
  EXPECT_FALSE(compressed_if_smaller(packed_codes(layout, uniform), layout));
  EXPECT_FALSE(compressed_if_smaller({}, {0, 0, 4}));
  EXPECT_TRUE(compressed_if_smaller(packed_codes(layout, [](Random& random, int64_t) { return geometric(random, 8); }),
                                    layout));
}

TEST(Entropy, PaddingThatIsNotZeroIsNotLost) {
  const CodeLayout layout{4, 100, 3};  // 300 bits of 384
  Bytes codes = packed_codes(layout, [](Random&, int64_t) { return 1U; });
  EXPECT_TRUE(compressed_if_smaller(codes, layout));
  codes[47] = 1;
  EXPECT_FALSE(compressed_if_smaller(codes, layout)) << "a stream has no place for it";
}

TEST(Entropy, TheSameCodesGiveTheSameStream) {
  const CodeLayout layout{32, 1'000, 5};
  const Bytes codes = packed_codes(layout, [](Random& random, int64_t) { return geometric(random, 5); });
  EXPECT_EQ(encode_codes(codes, layout), encode_codes(codes, layout));
}

TEST(Entropy, CodesOfAnotherSizeOrWidthAreRefused) {
  EXPECT_THROW(encode_codes(Bytes(17), {1, 16, 8}), ShapeError);
  EXPECT_THROW(encode_codes(Bytes(32), {1, 16, 9}), ShapeError);
  EXPECT_THROW(encode_codes({}, {0, 0, 0}), ShapeError);
}

TEST(Entropy, QuantizedFrequenciesSumUpAndKeepWhatOccurs) {
  const std::vector<uint64_t> counts = {1'000'000'000, 1, 0, 5, 1, 1, 1, 1, 900'000'000};
  for (int precision = min_rans_precision; precision <= max_rans_precision; ++precision) {
    const auto frequencies = quantized_frequencies(counts, precision);
    EXPECT_EQ(std::accumulate(frequencies.begin(), frequencies.end(), 0U), 1U << precision);
    for (size_t i = 0; i < counts.size(); ++i) EXPECT_EQ(frequencies[i] > 0, counts[i] > 0) << i;
  }
  const auto all = quantized_frequencies(std::vector<uint64_t>(256, 7), 8);
  EXPECT_TRUE(std::ranges::all_of(all, [](uint32_t frequency) { return frequency == 1; }));
}

/// A small stream with every part that there is: class numbers, tables, a chunk table and words.
class HostileStream : public ::testing::Test {
 protected:
  const CodeLayout layout_{24, 61, 3};
  const Bytes codes_ = packed_codes(layout_, [](Random& random, int64_t channel) {
    return channel % 2 == 0 ? geometric(random, 3) : 7 - geometric(random, 3);
  });
  const Bytes stream_ = encode_codes(codes_, layout_);
};

TEST_F(HostileStream, TruncatedAnywhereIsRefused) {
  for (size_t length = 0; length < stream_.size(); ++length)
    EXPECT_NE(refusal(Bytes(stream_.begin(), stream_.begin() + static_cast<int64_t>(length)), layout_), "") << length;
}

TEST_F(HostileStream, AnyFlippedBitIsRefusedOrDecodesToSomethingOfTheRightSize) {
  int refused = 0;
  for (size_t bit = 0; bit < stream_.size() * 8; ++bit) {
    Bytes damaged = stream_;
    damaged[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    try {
      EXPECT_EQ(decode_codes(damaged, layout_, "stream").size(), codes_.size());
    } catch (const FormatError&) {
      ++refused;
    }
  }
  // The file's checksum must find damage that the states at the end of a chunk do not show.
  EXPECT_GT(refused, static_cast<int>(stream_.size() * 8 * 99 / 100));
}

TEST_F(HostileStream, EachLieIsNamed) {
  const auto with = [&](size_t at, uint8_t value) {
    Bytes stream = stream_;
    stream[at] = value;
    return stream;
  };
  EXPECT_NE(refusal(with(0, 7), layout_).find("symbols of 7 bits"), std::string::npos);
  EXPECT_NE(refusal(with(0, 9), layout_).find("symbols of 9 bits"), std::string::npos);
  EXPECT_NE(refusal(with(1, 17), layout_).find("precision of 17"), std::string::npos);
  EXPECT_NE(refusal(with(1, 7), layout_).find("precision of 7"), std::string::npos);
  EXPECT_NE(refusal(with(1, static_cast<uint8_t>(stream_[1] + 1)), layout_).find("frequencies sum to"),
            std::string::npos);
  EXPECT_NE(refusal(with(2, 0), layout_).find("0 classes"), std::string::npos);
  EXPECT_NE(refusal(with(2, 17), layout_).find("17 classes"), std::string::npos);
  EXPECT_NE(refusal(with(7, 255), layout_).find("runs in a chunk"), std::string::npos);
  Bytes longer = stream_;
  longer.push_back(0);
  EXPECT_NE(refusal(longer, layout_), "");
  EXPECT_NE(refusal(stream_, {24, 61, 2}), "") << "codes of another width";
  EXPECT_NE(refusal(stream_, {25, 61, 3}), "") << "another channel";
}

TEST_F(HostileStream, SmallStreamsCannotAskForMuchMemory) {
  for (const CodeLayout huge : {CodeLayout{int64_t{1} << 62, 1, 3}, CodeLayout{1, int64_t{1} << 62, 3},
                                CodeLayout{int64_t{1} << 31, int64_t{1} << 31, 3}, CodeLayout{1 << 20, 1 << 20, 3}})
    EXPECT_NE(refusal(stream_, huge).find("decode to more than"), std::string::npos) << huge.channels;
  // Half a gigabyte is not too much by itself, but such a stream has thousands of chunks.
  Bytes one_run_a_chunk = stream_;
  one_run_a_chunk[4] = 1;
  EXPECT_NE(refusal(one_run_a_chunk, {1 << 10, 1 << 20, 3}).find("too few"), std::string::npos);
  EXPECT_NE(refusal(stream_, {1 << 25, 1, 3}).find("too few"), std::string::npos);
  EXPECT_THROW(decode_codes(stream_, layout_, "stream", layout_.bytes() - 1), FormatError);
}

}  // namespace
}  // namespace nibblenet
