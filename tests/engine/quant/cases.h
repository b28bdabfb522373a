#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/quant/scheme.h"
#include "tests/support/methods.h"

namespace nibblenet::testing {

inline TensorView<const float> view(const std::vector<float>& values, const Shape& shape) {
  return {values.data(), shape};
}

/// The weights of AlexNet with the original notebooks' classifier.
inline const std::vector<Shape> alexnet_weights = {{64, 3, 11, 11},  {192, 64, 5, 5},  {384, 192, 3, 3},
                                                   {256, 384, 3, 3}, {256, 256, 3, 3}, {4096, 9216},
                                                   {1024, 4096},     {10, 1024}};

/// Shapes that catch what friendly ones hide: 1, primes, one past a power of two, inner sizes that
/// no block divides.
inline const std::vector<Shape> awkward_shapes = {{1, 1}, {1, 7}, {17, 65}, {3, 5, 3, 3}, {2, 3, 11, 11}, {1, 1, 1, 1}};

/// Granularities of a method, all valid: sizes of 1, odd ones, and ones larger than any tensor.
inline std::vector<Granularity> granularities_of(const MethodTraits& traits) {
  using Kind = Granularity::Kind;
  if (traits.sorted) return {{Kind::sorted}, {Kind::sorted, 1}, {Kind::sorted, 7}, {Kind::sorted, INT64_MAX}};
  return {{Kind::tensor},     {Kind::channel},
          {Kind::row},        {Kind::block, 1},
          {Kind::block, 64},  {Kind::block, INT64_MAX},
          {Kind::tile, 2, 3}, {Kind::tile, 8, 8},
          {Kind::tile, 1, 1}, {Kind::tile, INT64_MAX, INT64_MAX}};
}

/// The methods whose values are the same for every tensor.
inline std::vector<MethodTraits> untrained_methods() {
  std::vector<MethodTraits> methods;
  for (const MethodTraits& traits : scalar_methods())
    if (!traits.trained) methods.push_back(traits);
  return methods;
}

/// Every scheme of a method: width x granularity x scale type x sign or zero point.
inline std::vector<Scheme> schemes_of(const MethodTraits& traits) {
  std::vector<Scheme> schemes;
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits)
    for (const Granularity& granularity : granularities_of(traits))
      for (const ScaleType scale : {ScaleType::f32, ScaleType::f16}) {
        for (const ScaleSign sign : {ScaleSign::absolute, ScaleSign::signed_max})
          schemes.push_back({traits.method, bits, granularity, scale, sign, false});
        if (traits.method == Method::linear)
          schemes.push_back({traits.method, bits, granularity, scale, ScaleSign::absolute, true});
      }
  return schemes;
}

/// The method and width that golden data call "dynamic_tree_4", "e4m3", "linear_symmetric_2", …
inline Scheme golden_scheme(const std::string& name) {
  const std::map<std::string, Method> fixed = {
      {"e4m3", Method::fp8_e4m3}, {"e5m2", Method::fp8_e5m2}, {"e2m1", Method::fp4}, {"nf4", Method::nf4}};
  if (const auto found = fixed.find(name); found != fixed.end())
    return default_scheme(found->second, traits_of(found->second).max_bits);
  const size_t separator = name.rfind('_');
  const std::string family = name.substr(0, separator);
  if (family != "dynamic_tree" && family != "linear_symmetric") fail<Error>("unknown golden codebook {}", name);
  return default_scheme(family == "dynamic_tree" ? Method::dynamic_tree : Method::linear,
                        std::stoi(name.substr(separator + 1)));
}

/// The key of a weight's group, from the weight's indices: weights of one group have equal keys. A
/// matrix counts as O x 1 x 1 x I.
using GroupKey = std::array<int64_t, 4>;
inline GroupKey group_key(const Granularity& granularity, const Shape& shape, int64_t o, int64_t k) {
  const bool matrix = shape.rank() == 2;
  const int64_t height = matrix ? 1 : shape[2];
  const int64_t width = matrix ? shape[1] : shape[3];
  const int64_t i = k / (height * width);
  const int64_t row = k / width % height;
  const int64_t column = k % width;
  switch (granularity.kind) {
    case Granularity::Kind::tensor:
    case Granularity::Kind::sorted:
      return {};
    case Granularity::Kind::channel:
      return {o, 0, 0, 0};
    case Granularity::Kind::row:
      return {o, i, row, 0};
    case Granularity::Kind::block:
      return {o, k / granularity.rows, 0, 0};
    case Granularity::Kind::tile:
      if (matrix) return {o / granularity.rows, column / granularity.columns, 0, 0};
      return {o, i, row / granularity.rows, column / granularity.columns};
  }
  return {};
}

}  // namespace nibblenet::testing
