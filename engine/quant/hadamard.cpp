#include "engine/quant/hadamard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace nibblenet {
namespace {

constexpr int64_t largest_block = 256, smallest_block = 8;

/// Butterflies of neighbours and of values 2 apart, for `count` values, a multiple of 4. Compilers
/// vectorise those of larger distances by themselves.
void transform_fours(float* x, int64_t count) {
  using Four = float __attribute__((vector_size(16)));
  for (int64_t i = 0; i < count; i += 4) {
    Four four;
    std::memcpy(&four, x + i, sizeof(four));
    four = __builtin_shufflevector(four, four, 0, 0, 2, 2) +
           __builtin_shufflevector(four, four, 1, 1, 3, 3) * Four{1, -1, 1, -1};
    four = __builtin_shufflevector(four, four, 0, 1, 0, 1) +
           __builtin_shufflevector(four, four, 2, 3, 2, 3) * Four{1, 1, -1, -1};
    std::memcpy(x + i, &four, sizeof(four));
  }
}

/// `stride` blocks side by side.
void transform_blocks(float* x, const Rotation& rotation) {
  const int64_t count = rotation.block * rotation.stride;
  int64_t distance = rotation.stride;
  if (distance == 1) {
    transform_fours(x, count);
    distance = 4;
  }
  for (; distance < count; distance *= 2)
    for (int64_t first = 0; first < count; first += 2 * distance)
      for (int64_t i = first; i < first + distance; ++i) {
        const float a = x[i], b = x[i + distance];
        x[i] = a + b;
        x[i + distance] = a - b;
      }
  const float factor = 1.0F / std::sqrt(static_cast<float>(rotation.block));
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

/// The input channels of weights; 0 where `rotated` does not fit them.
int64_t channels_of(const Scheme& scheme, const Shape& weights) {
  if (weights.rank() == 4) return scheme.rotated == 1 ? weights[1] : 0;
  return weights.rank() == 2 && weights[1] % scheme.rotated == 0 ? weights[1] / scheme.rotated : 0;
}

}  // namespace

int64_t hadamard_block(int64_t channels) {
  if (channels < 1) return 0;
  const int64_t block = std::min(int64_t{1} << std::countr_zero(static_cast<uint64_t>(channels)), largest_block);
  return block < smallest_block ? 0 : block;
}

Rotation rotation_of_inputs(const Scheme& scheme, const Shape& weights) {
  if (!scheme.is_rotated()) return {};
  return {hadamard_block(channels_of(scheme, weights)), scheme.rotated};
}

Rotation rotation_of_weights(const Scheme& scheme, const Shape& weights) {
  Rotation rotation = rotation_of_inputs(scheme, weights);
  if (weights.rank() == 4) rotation.stride = weights[2] * weights[3];
  return rotation;
}

void expect_rotatable(const Scheme& scheme, const Shape& weights, std::string_view name) {
  if (!scheme.is_rotated() || rotation_of_inputs(scheme, weights)) return;
  fail<ShapeError>("{}: {} needs a multiple of {} input channels{}, and the weights are {}", name, to_string(scheme),
                   smallest_block, scheme.rotated > 1 ? fmt::format(" of {} inputs each", scheme.rotated) : "",
                   to_string(weights));
}

Scheme rotated_where_possible(Scheme scheme, const Shape& weights) {
  if (!rotation_of_inputs(scheme, weights)) scheme.rotated = 0;
  return scheme;
}

void hadamard_transform(std::span<float> x, Rotation rotation) {
  const auto count = static_cast<int64_t>(x.size());
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < count; first += rotation.block * rotation.stride)
    transform_blocks(x.data() + first, rotation);
}

}  // namespace nibblenet
