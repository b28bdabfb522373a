#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/schemes.h"
#include "tests/support/test_backend.h"

// Quantizing on the device gives the file that quantizing on the host gives, to the bit.

namespace nibblenet {
namespace {

using testing::identifier;
using testing::make_test_backend;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

void expect_same(const PackedTensor& actual, const PackedTensor& expected) {
  EXPECT_EQ(actual.scheme, expected.scheme);
  EXPECT_EQ(actual.shape, expected.shape);
  EXPECT_EQ(actual.codes, expected.codes);
  EXPECT_EQ(actual.scales, expected.scales);
  EXPECT_EQ(actual.zero_points, expected.zero_points);
  EXPECT_EQ(actual.block_ids, expected.block_ids);
  EXPECT_EQ(actual.codebook, expected.codebook);
}

class CudaQuantize : public ::testing::TestWithParam<MethodTraits> {
 protected:
  std::unique_ptr<Backend> device_ = make_test_backend();
};

TEST_P(CudaQuantize, EverySchemeGivesTheHostsBits) {
  for (const Shape& shape : {Shape{1, 1}, Shape{7, 131}, Shape{5, 3, 3, 3}}) {
    Values weights = uniform(shape, 3);
    for (size_t i = 0; i < weights.data.size(); i += 5) weights.data[i] = i % 2 == 0 ? 0.5F : -0.5F;  // ties
    for (const Scheme& scheme : schemes_of(GetParam())) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      expect_same(device_->quantize(weights.view(), scheme, "w"), quantize(weights.view(), scheme, "w"));
    }
  }
}

TEST_P(CudaQuantize, GroupsOfZerosAndOfOneSign) {
  Values weights = uniform({4, 70}, 3);
  for (size_t i = 0; i < 70; ++i) {
    weights.data[i] = i % 2 == 0 ? 0.0F : -0.0F;
    weights.data[70 + i] = 0.25F + std::abs(weights.data[70 + i]);
    weights.data[140 + i] = -weights.data[70 + i];
    weights.data[210 + i] *= 1e-42F;  // steps underflow
  }
  for (const Scheme& scheme : schemes_of(GetParam())) {
    SCOPED_TRACE(to_string(scheme));
    expect_same(device_->quantize(weights.view(), scheme, "w"), quantize(weights.view(), scheme, "w"));
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, CudaQuantize, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST(CudaQuantizeErrors, AreTheHosts) {
  const auto device = make_test_backend();
  Values weights = uniform({2, 3}, 1);
  weights.data[4] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(device->quantize(weights.view(), parse_scheme("linear"), "w"), Error);
}

}  // namespace
}  // namespace nibblenet
