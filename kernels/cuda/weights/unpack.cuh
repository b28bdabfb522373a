#pragma once

#include <bit>

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/weights/readers.cuh"
#include "kernels/cuda/weights/superblock.h"

// Unpacking: a lane's n words of a chunk (weights/superblock.h) become the fp16 values of
// mma.m16n8k16: 16 registers of two fp16 values, a[f][r] being the r-th of fragment f. Linear codes
// become integers without leaving the registers. Codes of all other methods are looked up: codes of
// 2 bits in two words, wider ones in shared memory.

namespace nibblenet {

/// Loads the words of a lane, whose first 16 bytes of a superblock in device memory are `of_lane`,
/// chunk by chunk.
template <int bits>
__device__ __forceinline__ void load_lane_words(const uint8_t* of_lane, uint32_t (&words)[Superblocks::chunks][bits]) {
#pragma unroll
  for (int i = 0; i < bits; ++i) {
    const uint4 v = load_once_16(of_lane + i * Superblocks::row_bytes);
    words[4 * i / bits][4 * i % bits] = v.x;
    words[(4 * i + 1) / bits][(4 * i + 1) % bits] = v.y;
    words[(4 * i + 2) / bits][(4 * i + 2) % bits] = v.z;
    words[(4 * i + 3) / bits][(4 * i + 3) % bits] = v.w;
  }
}

/// Loads a lane's words of chunk `chunk` of a superblock in shared memory.
template <int bits>
__device__ __forceinline__ void load_chunk(const unsigned char* superblock, int chunk, uint32_t (&words)[bits]) {
  constexpr int width = bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;  // words of a load
  const unsigned char* of_lane = superblock + threadIdx.x % 32 * 16;
#pragma unroll
  for (int i = 0; i < bits; i += width) {
    const int word = chunk * bits + i;
    const unsigned char* from = of_lane + word / 4 * Superblocks::row_bytes + word % 4 * 4;
    if constexpr (width == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    } else if constexpr (width == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      words[i] = v.x, words[i + 1] = v.y;
    } else {
      words[i] = *reinterpret_cast<const uint32_t*>(from);
    }
  }
}

/// Masks of two codes that cross from one word into the next.
struct CrossingMasks {
  uint32_t lower;  ///< in the next word, in place
  uint32_t upper;  ///< of this word, shifted down by 16 - n
};
constexpr CrossingMasks crossing_masks(int rest, int bits) {
  const uint32_t lower = in_both_halves((1U << rest) - 1U);
  return {lower, in_both_halves((1U << bits) - 1U) ^ lower};
}

/// Bits of the fp16 values 2^-p and -1024 2^-p - zero. Both are exact: they have at most 11 bits.
constexpr uint32_t half_of_power(int p) { return static_cast<uint32_t>(15 - p) << 10; }
constexpr uint32_t half_of_offset(int p, int zero) {
  const int magnitude = 1024 + (zero << p);  // times 2^p; below 2048
  return 0x8000U | static_cast<uint32_t>(25 - p) << 10 | static_cast<uint32_t>(magnitude - 1024);
}

/// Codes of n bits as the integers code - (2^(n-1) - 1): the values of linear codes, and of affine
/// ones up to a constant. A field at bit p of the mantissa of 1024 is the fp16 value 1024 + code
/// 2^p. One fused multiply-add turns it into the integer, without rounding (FasterTransformer's
/// trick; also in Marlin, Frantar 2024, arXiv 2408.11743).
template <int n>
struct IntegerCodes {
  static constexpr int bits = n;
  static constexpr bool integers = true;
  static constexpr int zero = (1 << (n - 1)) - 1;
  struct Table {};
  __device__ void prepare(Table&, const CodeValues&, const float*, float) const {}

  __device__ __forceinline__ void decode(const uint32_t (&words)[n], const Table&, uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value)
      a[value / 4][value % 4] = integers_of(words, value);
  }

  /// Bit at which subnormals() leaves the codes of register r of a fragment. Registers of one row,
  /// r and r + 2, have the same.
  static constexpr int subnormal_place(int r) { return (n == 2 || n == 4) && r % 2 == 1 ? n : 0; }
  /// The codes as subnormal fp16 values: code 2^(p - 24) with p = subnormal_place(r). A field that
  /// is masked, and shifted at most, is that value already: below bit 11, fp16 bits count 2^-24.
  /// In contrast to decode() this takes no fused multiply-add. The product's epilogue applies
  /// 2^(24 - p), and takes the zero away.
  __device__ __forceinline__ void subnormals(const uint32_t (&words)[n], uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value)
      a[value / 4][value % 4] = subnormals_of(words, value);
  }

 private:
  static __device__ __forceinline__ uint32_t subnormals_of(const uint32_t (&words)[n], int value) {
    const FieldPlace at = field_place(value, n);
    const uint32_t word = words[at.word];
    if (at.rest > 0) {
      const CrossingMasks masks = crossing_masks(at.rest, n);
      return and_or(words[at.word + 1], masks.lower, word >> (16 - n) & masks.upper);
    }
    if (n == 8 && at.shift == 8) return __byte_perm(word, 0, 0x4341);
    const int place = subnormal_place(value % 4);
    return word >> (at.shift - place) & in_both_halves(((1U << n) - 1U) << place);
  }

  /// After unrolling, the compiler knows everything but the words.
  static __device__ __forceinline__ uint32_t integers_of(const uint32_t (&words)[n], int value) {
    constexpr uint32_t magic = in_both_halves(0x6400U);  // 1024
    const FieldPlace at = field_place(value, n);
    const uint32_t word = words[at.word];
    if (at.rest > 0) {
      const CrossingMasks masks = crossing_masks(at.rest, n);
      const uint32_t upper = and_or(word >> (16 - n), masks.upper, magic);
      return without_bias(and_or(words[at.word + 1], masks.lower, upper), 0);
    }
    if (n == 8 && at.shift == 8) return without_bias(__byte_perm(word, magic, 0x5351), 0);  // one instruction, not two
    // Beyond the mantissa, fields from bit 8 on share one shifted word.
    const int down = at.shift + n <= 10 ? 0 : at.shift < 8 ? at.shift : 8;
    const int place = at.shift - down;
    return without_bias(and_or(word >> down, in_both_halves(((1U << n) - 1U) << place), magic), place);
  }

  /// code - zero from 1024 + code 2^p.
  static __device__ __forceinline__ uint32_t without_bias(uint32_t fp16, int p) {
    return fma_fp16x2(fp16, in_both_halves(half_of_power(p)), in_both_halves(half_of_offset(p, zero)));
  }
};

inline __device__ uint32_t half_bits(float value) {
  f16 half;
  store_element(&half, 0, value);
  return half.bits;
}

/// Codes of n bits as fp16, from a table in shared memory. With 32 copies every lane has one in a
/// bank of its own, so that look-ups never conflict; fewer copies take less memory. Up to 4 bits,
/// an entry holds both values of a pair.
template <int n, int copies = 32>
struct CodebookCodes {
  static constexpr int bits = n;
  static constexpr bool integers = false;
  static constexpr bool by_pair = n <= 4;
  static constexpr int entries = 1 << (by_pair ? 2 * n : n);
  struct Table {
    uint32_t fp16[entries][copies];
  };

  /// Fills the table with values times `factor`. All threads; the caller's next barrier makes it
  /// visible.
  __device__ void prepare(Table& table, const CodeValues& fixed, const float* stored, float factor) const {
    const float* values = stored != nullptr ? stored : fixed.values;
    for (int i = static_cast<int>(threadIdx.x); i < entries * copies; i += static_cast<int>(blockDim.x)) {
      const int entry = i / copies;
      const uint32_t even = half_bits(values[entry % (1 << n)] * factor);
      const uint32_t odd = by_pair ? half_bits(values[entry >> n] * factor) : even;
      table.fp16[entry][i % copies] = even | odd << 16;
    }
  }

  __device__ __forceinline__ void decode(const uint32_t (&words)[n], const Table& table, uint32_t (&a)[4][4]) const {
    const SharedPlace of_lane = shared_place(&table.fp16[0][threadIdx.x % copies]);
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value) {
      const FieldPlace at = field_place(value, n);
      uint32_t word = words[at.word];
      if (at.rest > 0) {
        const CrossingMasks masks = crossing_masks(at.rest, n);
        word = and_or(words[at.word + 1], masks.lower, word >> (16 - n) & masks.upper);
      }
      a[value / 4][value % 4] = pair_of(of_lane, word, at.rest > 0 ? 0 : at.shift);
    }
  }

 private:
  static constexpr int entry_shift = std::countr_zero(4U * copies);  ///< an entry and its copies take 2^this bytes

  /// Values of the two codes `shift` bits above the start of either half word.
  static __device__ __forceinline__ uint32_t pair_of(SharedPlace of_lane, uint32_t word, int shift) {
    // Extracting a byte is one instruction; one more turns it into an address.
    if constexpr (n == 4) return entry_of_byte(of_lane, paired_nibbles(word, shift % 8), shift / 8);
    if constexpr (n == 8)
      return join(entry_of_byte(of_lane, word, shift / 8), entry_of_byte(of_lane, word, shift / 8 + 2));
    constexpr uint32_t mask = ((1U << n) - 1U) << entry_shift;
    const uint32_t even = moved_down(word, shift - entry_shift) & mask;
    if constexpr (by_pair)
      return load_shared(of_lane + and_or(moved_down(word, shift + 16 - n - entry_shift), mask << n, even));
    return join(load_shared(of_lane + even),
                load_shared(of_lane + (moved_down(word, shift + 16 - entry_shift) & mask)));
  }

  /// 4-bit codes: the lowest byte gets the codes `shift` bits above the start of either half word,
  /// the next byte those eight bits further up. After unrolling, two extractions serve four pairs.
  static __device__ __forceinline__ uint32_t paired_nibbles(uint32_t word, int shift) {
    return select_bits(0x0F0F0F0FU, word >> shift, word >> (shift + 12));
  }
  static __device__ __forceinline__ uint32_t entry_of_byte(SharedPlace of_lane, uint32_t bytes, int byte) {
    return load_shared(of_lane + (__byte_perm(bytes, 0, 0x4440U + static_cast<unsigned>(byte)) << entry_shift));
  }

  static __device__ __forceinline__ uint32_t moved_down(uint32_t word, int by) {
    return by < 0 ? word << -by : word >> by;
  }
  /// Joins the lower halves of two words.
  static __device__ __forceinline__ uint32_t join(uint32_t even, uint32_t odd) {
    return __byte_perm(even, odd, 0x5410);
  }
};

/// Codes of 2 bits: their four fp16 values are two words. One byte permutation selects the values
/// of a pair.
template <int copies>
struct CodebookCodes<2, copies> {
  static constexpr int bits = 2;
  static constexpr bool integers = false;
  struct alignas(16) Table {  // others lie behind it
    uint32_t fp16[2];
  };

  __device__ void prepare(Table& table, const CodeValues& fixed, const float* stored, float factor) const {
    const float* values = stored != nullptr ? stored : fixed.values;
    if (const unsigned i = threadIdx.x; i < 2)
      table.fp16[i] = half_bits(values[2 * i] * factor) | half_bits(values[2 * i + 1] * factor) << 16;
  }

  __device__ __forceinline__ void decode(const uint32_t (&words)[2], const Table& table, uint32_t (&a)[4][4]) const {
    const uint32_t low = load_shared(shared_place(&table.fp16[0])), high = load_shared(shared_place(&table.fp16[1]));
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      // The even codes of four pairs in one byte, their odd codes in the next; the other four pairs
      // in the upper half.
      const uint32_t bytes = __byte_perm(words[word], 0, 0x3120);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Code c selects bytes 2c and 2c + 1: two digits of a permutation.
        const uint32_t digits = (bytes >> 2 * i & 0x03030303U) * 0x22U + 0x10101010U;
        const int value = 8 * word + i;
        a[value / 4][value % 4] = permute_bytes(low, high, digits);
        a[value / 4 + 1][value % 4] = permute_bytes(low, high, digits >> 16);
      }
    }
  }
};

/// Weights that are fp16 values, in the same order: nothing to unpack.
struct HalfCodes {
  static constexpr int bits = 16;
  static constexpr bool integers = false;
  struct Table {};
  __device__ void prepare(Table&, const CodeValues&, const float*, float) const {}

  __device__ __forceinline__ void decode(const uint32_t (&words)[bits], const Table&, uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value) a[value / 4][value % 4] = words[value];
  }
};

}  // namespace nibblenet
