#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/superblock.h"
#include "kernels/cuda/weights.cuh"

// From a lane's n words of a chunk (kernels/cuda/superblock.h) to the halves that mma.m16n8k16 multiplies: 16 registers
// of two halves, a[f][r] the r-th one of fragment f. Two ways: linear codes are turned into integers without
// leaving the registers, the codes of every other method are looked up in shared memory.

namespace nibblenet {

/// Two codes, `shift` bits above the start of either half word of `word`. Around them lie other codes' bits.
struct CodePair {
  uint32_t word;
  int shift;
};
/// After unrolling, everything here but the joining of a code that crosses words is known to the compiler.
template <int bits>
__device__ __forceinline__ CodePair code_pair(const uint32_t (&words)[bits], int value) {
  const FieldPlace at = field_place(value, bits);
  if (at.rest == 0) return {words[at.word], at.shift};
  const uint32_t lower = in_both_halves((1U << at.rest) - 1U);
  const uint32_t upper = in_both_halves((1U << bits) - 1U) ^ lower;
  return {(words[at.word] >> (16 - bits) & upper) | (words[at.word + 1] & lower), 0};
}

/// Bits of the half 2^-p, and of -1024 2^-p - zero: exact, since they are of 11 bits at most.
constexpr uint32_t half_of_power(int p) { return static_cast<uint32_t>(15 - p) << 10; }
constexpr uint32_t half_of_offset(int p, int zero) {
  const int magnitude = 1024 + (zero << p);  // times 2^p; below 2048
  return 0x8000U | static_cast<uint32_t>(25 - p) << 10 | static_cast<uint32_t>(magnitude - 1024);
}

/// Codes of n bits as the integers code - (2^(n-1) - 1): what linear codes stand for, and affine ones up to a constant.
/// A field at bit p of the mantissa of 1024 is the half 1024 + code 2^p, and one multiplication and addition makes the
/// integer of it, without rounding (the trick of FasterTransformer, also in Marlin, Frantar 2024, arXiv 2408.11743).
template <int n>
struct IntegerCodes {
  static constexpr int bits = n;
  static constexpr bool integers = true;
  static constexpr int zero = (1 << (n - 1)) - 1;
  struct Table {};
  __device__ void prepare(Table&, const CodeValues&, const float*, float) const {}

  __device__ __forceinline__ void decode(const uint32_t (&words)[n], const Table&, uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value) {
      CodePair pair = code_pair<n>(words, value);
      if (n == 8 && pair.shift == 8) {  // one instruction instead of two
        a[value / 4][value % 4] = fma_halves(__byte_perm(pair.word, 0x64646464U, 0x4341),
                                             in_both_halves(half_of_power(0)), in_both_halves(half_of_offset(0, zero)));
        continue;
      }
      if (pair.shift + n > 10) {  // beyond the mantissa: fields from 8 on share one shifted word
        const int down = pair.shift < 8 ? pair.shift : 8;
        pair = {pair.word >> down, pair.shift - down};
      }
      const uint32_t mask = in_both_halves(((1U << n) - 1U) << pair.shift);
      a[value / 4][value % 4] =
          fma_halves(and_or(pair.word, mask, in_both_halves(0x6400U)), in_both_halves(half_of_power(pair.shift)),
                     in_both_halves(half_of_offset(pair.shift, zero)));
    }
  }
};

/// Codes of n bits as halves from a table in shared memory, of which every lane has a copy in a bank of its own: no two
/// lanes ever wait for each other, whatever they look up. Up to 4 bits an entry is both values of a pair.
template <int n>
struct CodebookCodes {
  static constexpr int bits = n;
  static constexpr bool integers = false;
  static constexpr bool by_pair = n <= 4;
  static constexpr int entries = 1 << (by_pair ? 2 * n : n);
  struct Table {
    uint32_t halves[entries][32];
  };

  /// By all threads; the caller's next barrier makes the table visible. Values are multiplied by `factor`.
  __device__ void prepare(Table& table, const CodeValues& fixed, const float* stored, float factor) const {
    const float* values = stored != nullptr ? stored : fixed.values;
    for (int i = static_cast<int>(threadIdx.x); i < entries * 32; i += static_cast<int>(blockDim.x)) {
      const int entry = i / 32;
      const uint32_t even = half_bits(values[entry % (1 << n)] * factor);
      const uint32_t odd = by_pair ? half_bits(values[entry >> n] * factor) : even;
      table.halves[entry][i % 32] = even | odd << 16;
    }
  }

  __device__ __forceinline__ void decode(const uint32_t (&words)[n], const Table& table, uint32_t (&a)[4][4]) const {
    const uint32_t* own = &table.halves[0][threadIdx.x % 32];
    constexpr uint32_t mask = (1U << n) - 1U;
#pragma unroll
    for (int value = 0; value < Superblocks::values_per_chunk; ++value) {
      const CodePair pair = code_pair<n>(words, value);
      const uint32_t even = pair.word >> pair.shift;
      if constexpr (by_pair) {
        // The odd code, moved down to lie behind the even one.
        const uint32_t odd = pair.word >> (pair.shift + 16 - n);
        a[value / 4][value % 4] = own[((even & mask) | (odd & mask << n)) * 32];
      } else {
        const uint32_t odd = pair.word >> (pair.shift + 16);
        a[value / 4][value % 4] = __byte_perm(own[(even & mask) * 32], own[(odd & mask) * 32], 0x7610);
      }
    }
  }

 private:
  static __device__ uint32_t half_bits(float value) {
    f16 half;
    store_element(&half, 0, value);
    return half.bits;
  }
};

}  // namespace nibblenet
