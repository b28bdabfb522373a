#pragma once

#include "kernels/cuda/device/gpu.h"
#include "kernels/cuda/weights/string_block.h"
#include "kernels/cuda/weights/superblock.h"
#include "kernels/cuda/weights/window_plan.h"

// Decoding of string blocks (weights/string_block.h) in registers.

namespace nibblenet {

/// A lane's strings of a block: of each column, the words of its 32 channels and what their last
/// windows need of the next lane's.
template <int quarters>
struct LaneStrings {
  static constexpr int last_bit = static_cast<int>(trellis_bit(StringBlocks::lane_channels - 1, quarters));
  static constexpr int words = (last_bit + trellis_window + 31) / 32;
  uint32_t of_column[StringBlocks::lane_columns][words];
};

/// Where a lane's words lie in a block.
template <int quarters>
struct LanePlace {
  int own[3];  ///< bytes of its first four words, and of those that are left
  int next;    ///< bytes of the next lane's first words
  int step;    ///< bytes from four words to the next four

  /// Of a lane of a block with `lanes` lanes.
  __device__ LanePlace(int lane, int lanes, int byte_of_next) : next(byte_of_next), step(lanes * 16) {
    constexpr int whole = quarters / 4 * 4;
    own[0] = StringBlocks::byte_of_word(0, lane, lanes, quarters);
    own[1] = quarters % 4 == 0 ? 0 : StringBlocks::byte_of_word(whole, lane, lanes, quarters);
    own[2] = quarters % 4 != 3 ? 0 : StringBlocks::byte_of_word(whole + 2, lane, lanes, quarters);
  }
  /// Of this thread. Lanes without channels decode others'.
  __device__ explicit LanePlace(int lanes) : LanePlace(of_thread() < lanes ? of_thread() : of_thread() % 4, lanes) {}

 private:
  static __device__ int of_thread() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ LanePlace(int lane, int lanes)
      : LanePlace(lane, lanes, StringBlocks::byte_of_word(0, lane + 4 < lanes ? lane + 4 : lane % 4, lanes, quarters)) {
  }
};

template <int quarters>
__device__ __forceinline__ void read_strings(const unsigned char* block, const LanePlace<quarters>& at,
                                             LaneStrings<quarters>& strings) {
  constexpr int whole = quarters / 4, rest = quarters % 4, columns = StringBlocks::lane_columns;
  uint32_t left[3] = {};
  uint32_t next[4] = {};
  if constexpr (whole > 0) {
    const uint4 v = *reinterpret_cast<const uint4*>(block + at.next);
    next[0] = v.x, next[1] = v.y, next[2] = v.z, next[3] = v.w;
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(block + at.next);
    next[0] = v.x, next[1] = v.y;
  }
#pragma unroll
  for (int i = 0; i < whole; ++i) {
    const uint4 v = *reinterpret_cast<const uint4*>(block + at.own[0] + i * at.step);
    const uint32_t four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int c = 0; c < columns; ++c) strings.of_column[c][i] = four[c];
  }
  if constexpr (rest == 1) left[0] = *reinterpret_cast<const uint32_t*>(block + at.own[1]);
  if constexpr (rest >= 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(block + at.own[1]);
    left[0] = v.x, left[1] = v.y;
  }
  if constexpr (rest == 3) left[2] = *reinterpret_cast<const uint32_t*>(block + at.own[2]);
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const unsigned half = c % 2 * 2;
    uint32_t(&words)[LaneStrings<quarters>::words] = strings.of_column[c];
    if constexpr (rest == 0) words[whole] = next[c];
    if constexpr (rest == 1) words[whole] = permute_bytes(left[0], next[c], 0x6540U + static_cast<unsigned>(c));
    if constexpr (rest == 2 && whole > 0) words[whole] = permute_bytes(left[c / 2], next[c], 0x5410U + half * 0x11U);
    if constexpr (rest == 2 && whole == 0) words[0] = permute_bytes(left[c / 2], next[c / 2], 0x5410U + half * 0x1111U);
    if constexpr (rest == 3) {
      const uint32_t own =
          permute_bytes(left[c / 2], left[2], 0x0410U + half * 0x11U + (static_cast<unsigned>(c) << 8));
      words[whole] = permute_bytes(own, next[c / 2], 0x4210U + (half << 12));
      words[whole + 1] = next[c / 2] >> (8 + 8 * half);
    }
  }
}

/// The 12 bits of `words` from `bit` on.
template <int count>
__device__ __forceinline__ uint32_t window_at(const uint32_t (&words)[count], int bit) {
  const int word = bit / 32, shift = bit % 32;
  if (shift == window_distance) return words[word] >> shift;
  const uint32_t low = shift < window_distance
                           ? words[word] >> shift
                           : shift_right_double(words[word], word + 1 < count ? words[word + 1] : 0, shift);
  return low & (trellis_states - 1);
}

/// The exponent of the power of two by which the values of channel i of a lane are multiplied.
template <int quarters>
__device__ __forceinline__ constexpr int window_scale(int i) {
  constexpr WindowPlan plan = plan_windows(quarters);
  return plan.scale(i);
}

/// The window of weight i of a lane's column, times 2^window_scale().
template <int quarters, int words>
__device__ __forceinline__ uint32_t scaled_window(const uint32_t (&of_column)[words], int i) {
  constexpr WindowPlan plan = plan_windows(quarters);
  const auto bit = static_cast<int>(trellis_bit(i, quarters));
  const int place = plan.place(i);
  uint32_t word = 0;
  if ((plan.turned >> i & 1U) != 0) {
    word = shift_right_double(of_column[bit / 32], of_column[bit / 32], (bit - place + 32) % 32);
  } else {
    const int begin = bit - place;
    word = of_column[begin / 32];
    if (begin % 32 != 0)
      word = shift_right_double(word, begin / 32 + 1 < words ? of_column[begin / 32 + 1] : 0, begin % 32);
  }
  return place == window_distance ? word >> place : word & (trellis_states - 1) << place;
}

/// The four numbers of 6 bits whose sum is the value of a window, plus 126. `summand`:
/// trellis_summand, and what trellis_value() adds for a window that is taken again.
__device__ __forceinline__ uint32_t parts_of_value(uint32_t window, uint32_t summand) {
  return (window * trellis_factor + summand) & 0x3F3F3F3FU;
}

/// What parts_of_value() takes for weight i.
template <int quarters>
__device__ __forceinline__ uint32_t summand_of(int i) {
  return trellis_summand + (trellis_again(i, quarters) ? trellis_states * trellis_factor : 0U);
}

/// These numbers for channel `i` of a lane's column, times 2^window_scale(): at most 252.
template <int quarters, int words>
__device__ __forceinline__ uint32_t scaled_parts(const uint32_t (&of_column)[words], int i) {
  const int scale = window_scale<quarters>(i);
  const uint32_t x = scaled_window<quarters>(of_column, i) * trellis_factor + (summand_of<quarters>(i) << scale);
  return x & 0x3F3F3F3FU << scale;
}

/// The sums of scaled_parts() of channel `i` for columns `column` and the next one, as the bits of
/// two fp16 values: 2^-24 times the whole numbers, which are subnormal.
template <int quarters>
__device__ __forceinline__ uint32_t scaled_sums(const LaneStrings<quarters>& strings, int column, int i) {
  const uint32_t odd = add_bytes(scaled_parts<quarters>(strings.of_column[column + 1], i), 0);
  return add_bytes(scaled_parts<quarters>(strings.of_column[column], i), odd << 16);
}

/// Two values in fp16, of their parts.
__device__ __forceinline__ uint32_t fp16_values(uint32_t even, uint32_t odd) {
  constexpr uint32_t magic = 0x6400U;  // 1024 has units as its lowest bits
  constexpr uint32_t one = in_both_halves(0x3C00U), minus = in_both_halves(0x8000U + magic + trellis_largest_value);
  return fma_fp16x2(add_bytes(even, add_bytes(odd, magic) * 0x10000U + magic), one, minus);
}

}  // namespace nibblenet
