#include "kernels/cuda/weights/device_order.h"

#include <gtest/gtest.h>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/kernels/schemes.h"

namespace nibblenet {
namespace {

using testing::on;
using testing::quantized;
using testing::random_strings;
using testing::uniform;
using testing::Values;

const std::vector<Shape> shapes = {{1, 1},   {5, 7},       {64, 64},      {70, 130},      {300, 48},
                                   {300, 1}, {5, 3, 3, 3}, {7, 64, 2, 2}, {70, 16, 3, 3}, {2, 5, 1, 1}};

/// A tensor whose codes and block ids lie in device order.
PackedTensor in_device_order(const PackedTensor& packed, WeightLayout layout) {
  PackedTensor ordered = packed;
  ordered.codes = to_device_codes(packed, layout);
  ordered.block_ids = to_device_block_ids(packed);
  return ordered;
}

void expect_round_trip(const PackedTensor& packed) {
  for (const WeightLayout layout : {WeightLayout::channels, best_layout(packed)}) {
    const PackedTensor ordered = in_device_order(packed, layout);
    EXPECT_EQ(from_device_codes(ordered, layout), packed.codes)
        << to_string(packed.scheme) << ", " << to_string(packed.shape);
    EXPECT_EQ(from_device_block_ids(ordered), packed.block_ids);
  }
}

TEST(DeviceOrder, ComesBackToTheFiles) {
  for (const MethodTraits& traits : scalar_methods())
    for (const Scheme& scheme : testing::schemes_of(traits))
      for (const Shape& shape : shapes) {
        if (scheme.bits % 3 != 2 && scheme.bits != 4) continue;  // 2, 4, 5 and 8
        expect_round_trip(quantized(shape, scheme, 1));
      }
}

TEST(DeviceOrder, OfStringsComesBackToTheFiles) {
  for (const char* name : {"trellis:0.5:channel", "trellis:0.75:channel", "trellis:1:channel", "trellis:1.25:channel",
                           "trellis:1.5:channel", "trellis:2:channel", "trellis:3:channel:f16", "trellis:4:channel"})
    for (const Shape& shape : shapes) expect_round_trip(random_strings(shape, parse_scheme(name)));
}

TEST(DeviceOrder, AnUnusedCodeBecomesZeros) {
  PackedTensor packed = quantized({64, 64}, parse_scheme("linear:4:channel"), 1);
  ASSERT_EQ(best_layout(packed), WeightLayout::superblocks);
  const Values before = testing::dequantized(packed);
  const uint8_t kept = packed.codes[0];
  packed.codes[0] = 0xFF;  // two of them
  PackedTensor ordered = in_device_order(packed, WeightLayout::superblocks);
  ordered.codes = from_device_codes(ordered, WeightLayout::superblocks);
  EXPECT_EQ(testing::dequantized(ordered), testing::dequantized(packed));
  EXPECT_EQ(ordered.codes[0], 0x77);
  ordered.codes[0] = kept;
  EXPECT_EQ(testing::dequantized(ordered), before);
}

TEST(DeviceOrder, LayoutsThatDoNotSuitAreRefused) {
  const PackedTensor packed = quantized({5, 7}, parse_scheme("linear:4:block:3"), 1);
  for (const WeightLayout layout : {WeightLayout::superblocks, WeightLayout::strings}) {
    EXPECT_THROW(to_device_codes(packed, layout), Error);
    EXPECT_THROW(from_device_codes(packed, layout), Error);
  }
}

TEST(DeviceOrder, AWeightComputesFromPartsOfOthers) {
  CudaBackend backend;
  for (const char* name : {"linear:4:channel", "linear:3:block:7:zero-point", "kmeans:3:channel", "nf4:4:block:64:f16",
                           "stable-embedding:4:sorted:10"}) {
    const Shape shape{70, 128};
    const PackedTensor packed = quantized(shape, parse_scheme(name), 1);
    const PackedTensor ordered = in_device_order(packed, best_layout(packed));
    const auto resident = [&](const auto& values) {
      return resident_copy(backend, values, MemoryCategory::data, backend.stream());
    };
    const auto codes = resident(ordered.codes), scales = resident(ordered.scales),
               zero_points = resident(ordered.zero_points), block_ids = resident(ordered.block_ids);
    const auto codebook = resident(ordered.codebook);
    WeightCuda lent(packed, best_layout(packed));
    lent.lie_at({codes.data(), scales.data(), zero_points.data(), block_ids.data(), codebook.data()});
    const auto own = backend.make_weight(packed);
    const Tensor<float> x = on(backend, uniform({3, 128}, 2)), bias = on(backend, uniform({70}, 3));
    Tensor<float> y = on(backend, Values({3, 70})), expected = on(backend, Values({3, 70}));
    backend.linear_forward(y.view(), x.view(), lent, bias.view(), Epilogue::none);
    backend.linear_forward(expected.view(), x.view(), *own, bias.view(), Epilogue::none);
    EXPECT_EQ(testing::from(backend, y.view()), testing::from(backend, expected.view())) << name;
    EXPECT_EQ(lent.traits().groups, static_cast<WeightCuda&>(*own).traits().groups);
  }
}

}  // namespace
}  // namespace nibblenet
