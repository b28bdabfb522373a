#include <gtest/gtest.h>

#include <bit>
#include <string>
#include <tuple>
#include <vector>

#include "engine/core/random.h"
#include "kernels/cpu/decode_cpu.h"
#include "tests/kernels/schemes.h"

namespace nibblenet {

std::string name_of(DecodePath path) {
  return path == DecodePath::portable ? "portable" : path == DecodePath::avx2 ? "avx2" : "avx512";
}

void PrintTo(DecodePath path, std::ostream* out) { *out << name_of(path); }

namespace {

using testing::identifier;
using testing::quantized;
using testing::schemes_of;

/// Inner sizes of 1, below a vector, one off a vector, and AlexNet's largest filter.
const std::vector<Shape> shapes = {{1, 1}, {3, 17}, {5, 64}, {2, 1031}, {3, 5, 3, 3}, {4, 3, 11, 11}};

bool supported(DecodePath path) {
  switch (path) {
    case DecodePath::portable:
      return true;
#if defined(__x86_64__)
    case DecodePath::avx2:
      return __builtin_cpu_supports("avx2");
    case DecodePath::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("bmi2");
#endif
    default:
      return false;
  }
}

/// Every byte pattern decodes: codes that quantization leaves out, and the padding that decoders
/// must not look at.
PackedTensor with_random_codes(PackedTensor packed, uint64_t seed) {
  Random random(seed);
  for (uint8_t& byte : packed.codes) byte = static_cast<uint8_t>(random.below(256));
  return packed;
}

/// The output is a vector of exactly `count` floats: AddressSanitizer sees one more.
template <class Decode>
std::vector<uint32_t> decoded_bits(int64_t count, Decode&& decode_into) {
  std::vector<float> out(static_cast<size_t>(count));
  decode_into(out.data());
  std::vector<uint32_t> bits;
  for (const float value : out) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

void expect_reference(DecodePath path, const PackedView& packed, int64_t channel, int64_t k, int64_t count) {
  const auto expected = decoded_bits(count, [&](float* out) { decode_reference(packed, channel, k, count, out); });
  const auto actual = decoded_bits(count, [&](float* out) { decode(path, packed, channel, k, count, out); });
  EXPECT_EQ(actual, expected) << "channel " << channel << ", weights [" << k << ", " << k + count << ")";
}

void expect_reference(DecodePath path, const PackedTensor& packed) {
  const Codebook codebook = codebook_of(packed);
  const PackedView view = view_of(packed, codebook);
  Random random(17);
  const auto below = [&](int64_t bound) { return static_cast<int64_t>(random.below(static_cast<uint64_t>(bound))); };
  for (int64_t channel = 0; channel < view.channels; ++channel) {
    expect_reference(path, view, channel, 0, view.channel_elements);
    for (int i = 0; i < 12; ++i) {
      const int64_t k = below(view.channel_elements);
      expect_reference(path, view, channel, k, below(view.channel_elements - k + 1));
    }
  }
}

class Decode : public ::testing::TestWithParam<std::tuple<DecodePath, MethodTraits>> {
 protected:
  void SetUp() override {
    if (!supported(path())) GTEST_SKIP() << "this processor has no " << name_of(path());
  }
  static DecodePath path() { return std::get<0>(GetParam()); }
  static const MethodTraits& traits() { return std::get<1>(GetParam()); }
};

TEST_P(Decode, EqualsTheReferenceBitForBit) {
  for (const Scheme& scheme : schemes_of(traits())) {
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      const PackedTensor packed = quantized(shape, scheme, 3);
      expect_reference(path(), packed);
      expect_reference(path(), with_random_codes(packed, 5));
      if (HasFailure()) return;  // one scheme says enough
    }
  }
}

TEST_P(Decode, ReadsAStoredCodebook) {
  for (int bits = traits().min_bits; bits <= traits().max_bits; ++bits) {
    PackedTensor packed = with_random_codes(quantized({3, 67}, default_scheme(traits().method, bits), 3), 7);
    packed.codebook.clear();  // trained ones have theirs
    for (int64_t i = 0; i < int64_t{1} << bits; ++i) packed.codebook.push_back(static_cast<float>(i * i) - 99.5F);
    ASSERT_NO_THROW(validate(packed, "w"));
    expect_reference(path(), packed);
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Decode,
                         ::testing::Combine(::testing::Values(DecodePath::portable, DecodePath::avx2,
                                                              DecodePath::avx512),
                                            ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end())),
                         [](const auto& instance) {
                           return name_of(std::get<0>(instance.param)) + "_" +
                                  identifier(std::get<1>(instance.param).name);
                         });

TEST(DecodePath, TheBestOneIsSupported) { EXPECT_TRUE(supported(best_decode_path())); }

}  // namespace
}  // namespace nibblenet
