#include "engine/quant/magnitude_order.h"

#include <algorithm>
#include <bit>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

/// The bits of |w| as an integer: ordered as the magnitudes are.
uint32_t magnitude_bits(float weight) { return std::bit_cast<uint32_t>(weight) & 0x7FFFFFFFU; }

// Buckets by sign-less exponent and the upper 8 mantissa bits: fine enough for each to fit the
// cache, few enough for the scatter to keep its write positions there.
constexpr int bucket_shift = 15;
constexpr size_t bucket_count = size_t{1} << (31 - bucket_shift);

/// Sorts by magnitude, then by index, so that the order is unique.
uint64_t sort_key(std::span<const float> weights, size_t i) {
  return static_cast<uint64_t>(magnitude_bits(weights[i])) << 32 | i;
}

/// Plain sort, for few weights (a convolution's slices): walking over the buckets would take
/// longer.
std::vector<uint32_t> few_magnitude_blocks(std::span<const float> weights, int64_t block) {
  std::vector<uint64_t> order(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) order[i] = sort_key(weights, i);
  std::ranges::sort(order);
  std::vector<uint32_t> blocks(weights.size());
  for (size_t rank = 0; rank < order.size(); ++rank)
    blocks[static_cast<uint32_t>(order[rank])] = static_cast<uint32_t>(rank / static_cast<size_t>(block));
  return blocks;
}

}  // namespace

std::vector<uint32_t> magnitude_blocks(std::span<const float> weights, int64_t block) {
  if (weights.size() > UINT32_MAX)
    fail<ShapeError>("cannot sort {} weights by magnitude; supported: fewer than 2^32", weights.size());

  if (weights.size() < bucket_count) return few_magnitude_blocks(weights, block);

  // One radix pass into buckets, then a sort of each bucket.
  std::vector<size_t> ends(bucket_count + 1);
  for (const float weight : weights) ++ends[(magnitude_bits(weight) >> bucket_shift) + 1];
  for (size_t bucket = 0; bucket < bucket_count; ++bucket) ends[bucket + 1] += ends[bucket];
  std::vector<uint64_t> order(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const uint64_t key = sort_key(weights, i);
    order[ends[key >> (32 + bucket_shift)]++] = key;
  }

  // The scatter moved each bucket's start to its end.
  std::vector<uint32_t> blocks(weights.size());
#pragma omp parallel for schedule(dynamic, 16)
  for (size_t bucket = 0; bucket < bucket_count; ++bucket) {
    const size_t begin = bucket == 0 ? 0 : ends[bucket - 1];
    std::sort(order.begin() + static_cast<std::ptrdiff_t>(begin),
              order.begin() + static_cast<std::ptrdiff_t>(ends[bucket]));
    for (size_t rank = begin; rank < ends[bucket]; ++rank)
      blocks[static_cast<uint32_t>(order[rank])] = static_cast<uint32_t>(rank / static_cast<size_t>(block));
  }
  return blocks;
}

}  // namespace nibblenet
