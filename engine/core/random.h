#pragma once

#include <cstdint>

namespace nibblenet {

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection that scrambles all 64 bits.
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Counter-based random bits: a pure function of (seed, stream, counter). A value does not depend
/// on threads, order or a restart. `stream` separates uses: one per layer, epoch or tensor.
constexpr uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
  const uint64_t key = mix64(seed + 0x9E3779B97F4A7C15ULL * (stream + 1));
  return mix64(key + 0x9E3779B97F4A7C15ULL * (counter + 1));
}

/// Uniform in [0, 1) with 24 bits, exactly representable as float.
constexpr float uniform_from_bits(uint64_t bits) { return static_cast<float>(bits >> 40) * 0x1p-24F; }

/// A random sequence with a position that can be saved and restored: (seed, stream, counter).
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  uint64_t bits() { return random_bits(seed_, stream_, counter_++); }
  float uniform() { return uniform_from_bits(bits()); }
  /// Uniform integer in [0, bound), bound > 0 (multiply-shift; bias below bound / 2^64).
  uint64_t below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(bits()) * bound) >> 64);
  }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
};

}  // namespace nibblenet
