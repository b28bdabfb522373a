#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/packed_tensor.h"
#include "tests/kernels/values.h"
#include "tests/support/methods.h"

namespace nibblenet::testing {

/// Every scheme of a method that a decoder can tell apart: width x granularity x scale type x zero
/// point. Blocks are shorter and longer than a vector and no divisor of anything; so are tiles.
inline std::vector<Scheme> schemes_of(const MethodTraits& traits) {
  const std::vector<std::string> granularities =
      traits.sorted
          ? std::vector<std::string>{"sorted", "sorted:7"}
          : std::vector<std::string>{"tensor", "channel", "row", "block:16", "block:7", "block:64", "tile:3x5"};
  std::vector<Scheme> schemes;
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits)
    for (const std::string& granularity : granularities)
      for (const ScaleType scale : {ScaleType::f32, ScaleType::f16}) {
        Scheme scheme = default_scheme(traits.method, bits);
        scheme.granularity = parse_granularity(granularity);
        scheme.scale = scale;
        schemes.push_back(scheme);
        if (traits.method != Method::linear) continue;
        scheme.zero_point = true;
        schemes.push_back(scheme);
      }
  return schemes;
}

/// Every scheme of a method whose scales in a matrix change at the borders of 64 columns only.
inline std::vector<Scheme> superblock_schemes(const MethodTraits& traits) {
  std::vector<Scheme> schemes;
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits)
    for (const std::string granularity :
         {"tensor", "channel", "row", "block:64", "block:128", "block:500", "tile:3x64", "tile:40x1000"})
      for (const bool zero_point : {false, true}) {
        if (zero_point && traits.method != Method::linear) continue;
        Scheme scheme = default_scheme(traits.method, bits);
        scheme.granularity = parse_granularity(granularity);
        scheme.scale = bits % 2 == 0 ? ScaleType::f16 : ScaleType::f32;
        scheme.zero_point = zero_point;
        schemes.push_back(scheme);
      }
  return schemes;
}

/// Methods that can have superblocks: magnitude-sorted schemes have a scale for each weight.
inline std::vector<MethodTraits> superblock_methods() {
  std::vector<MethodTraits> methods;
  std::ranges::copy_if(scalar_methods(), std::back_inserter(methods),
                       [](const auto& traits) { return !traits.sorted; });
  return methods;
}

inline PackedTensor quantized(const Shape& shape, const Scheme& scheme, uint64_t seed) {
  const Values weights = uniform(shape, seed);
  return quantize(weights.view(), scheme, "w");
}

/// A trellis tensor of random bits, with random scales in float32: every window there is.
inline PackedTensor random_strings(const Shape& shape, const Scheme& scheme) {
  PackedTensor packed{.scheme = scheme, .shape = shape};
  packed.codes.resize(static_cast<size_t>(trellis_layout(packed).bytes()));
  Random random(7);
  for (uint8_t& byte : packed.codes) byte = static_cast<uint8_t>(random.bits());
  const std::vector<float> scales = uniform({shape[0]}, 2).data;
  packed.scales.resize(scales.size() * sizeof(float));
  std::copy_n(reinterpret_cast<const uint8_t*>(scales.data()), packed.scales.size(), packed.scales.data());
  return packed;
}

inline Values dequantized(const PackedTensor& packed) {
  Values weights(packed.shape);
  dequantize(packed, weights.view());
  return weights;
}

inline std::unique_ptr<Weight> float_weight(Backend& backend, const Shape& shape) {
  return backend.make_weight(uniform(shape, 1).view());
}

inline std::unique_ptr<Weight> packed_weight(Backend& backend, const Shape& shape) {
  return backend.make_weight(quantized(shape, parse_scheme("linear:4:channel"), 1));
}

}  // namespace nibblenet::testing
