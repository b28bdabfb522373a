#pragma once

#include "kernels/cuda/device/element.cuh"

// Activations of few rows as whole numbers of three digits, for products of bytes.

namespace nibblenet {

inline constexpr int digit_rows = 2;                            ///< of x, at most
inline constexpr int digits_each = 3;                           ///< of a number, to the base 256, from -128 to 127
inline constexpr int digit_columns = digit_rows * digits_each;  ///< of the second operand of mma.m16n8k32
/// Most blocks of 16 columns of x. Sums stay below 2^29: 4,096 columns of 4 x 252 x 128.
inline constexpr int digit_most_blocks = 256;

/// Rows of x as digits. A row's values are x = X factor, where X has at most 22 bits beside its
/// sign, and the factor is a power of two. So |x| >= 2^-11 max|x| of the row is exact, and any x
/// is off by at most 2^-22 max|x|.
struct RowDigits {
  alignas(16) uint8_t digits[digit_most_blocks][digit_columns][16];  ///< [blocks, (row, digit), columns]
};
/// What goes with the digits.
struct RowFactors {
  float factor[digit_rows];  ///< of each row; NaN where a value of it is not finite
  int sum[digit_columns];    ///< of the digits, over all columns
};
struct RowMaxima {
  unsigned of_warp[8];
};

/// Digits d of X = d0 + 256 d1 + 65536 d2, in three bytes.
__device__ __forceinline__ uint32_t digits_of(int whole) {
  // With 128 more in each digit, they are those of an unsigned number.
  return (static_cast<uint32_t>(whole) + 0x808080U) ^ 0x808080U;
}

/// Fills `to` with the rows of x [batch, columns], its columns [16 begin, 16 end), and the factors.
/// Rows that x does not have are zeros. 256 threads, half of them a row. The digits are visible at
/// the end, the factors at the caller's next barrier.
__device__ __forceinline__ void make_digits(const f16* x, int batch, int columns, int begin, int end, RowDigits& to,
                                            RowFactors& factors) {
  constexpr int threads = 256 / digit_rows;
  const int thread = static_cast<int>(threadIdx.x) % threads, row = static_cast<int>(threadIdx.x) / threads;
  const int vectors = row < batch ? 2 * (end - begin) : 0;
  const auto* from =
      reinterpret_cast<const uint4*>(x + static_cast<int64_t>(row < batch ? row : 0) * columns + 16 * begin);
  auto& maxima = shared<RowMaxima>();
  unsigned largest = 0;  // magnitudes are in the order of their bits
  for (int i = thread; i < vectors; i += threads) {
    const uint4 v = from[i];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (const uint32_t word : words) {
      const unsigned even = word & 0x7FFFU, odd = word >> 16 & 0x7FFFU;
      largest = largest < even ? even : largest;
      largest = largest < odd ? odd : largest;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const unsigned other = __shfl_xor_sync(0xFFFFFFFFU, largest, distance);
    largest = largest < other ? other : largest;
  }
  if (threadIdx.x % 32 == 0) maxima.of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < threads / 32; ++warp) {
    const unsigned other = maxima.of_warp[row * (threads / 32) + warp];
    largest = largest < other ? other : largest;
  }
  constexpr unsigned bias = 127, width = 21;  // X is below 2^22
  const bool finite = largest < 0x7C00U;
  const f16 of_largest = {static_cast<uint16_t>(finite ? largest : 0)};
  const float value = load_element(&of_largest, 0);
  const unsigned exponent = value > 0.0F ? __float_as_uint(value) >> 23 : bias;
  const float scale = __uint_as_float((2 * bias + width - exponent) << 23);
  if (thread == 0) factors.factor[row] = __uint_as_float(finite ? (exponent - width) << 23 : 0x7FC00000U);
  for (int i = thread; i < 2 * (end - begin); i += threads) {
    const uint4 v = i < vectors && finite ? from[i] : uint4{};
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    uint32_t of_digit[digits_each][2] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t whole = digits_of(static_cast<int>(rintf(fp16_in(words, e) * scale)));
#pragma unroll
      for (int d = 0; d < digits_each; ++d) of_digit[d][e / 4] |= (whole >> 8 * d & 255U) << 8 * (e % 4);
    }
#pragma unroll
    for (int d = 0; d < digits_each; ++d)
      *reinterpret_cast<uint2*>(&to.digits[i / 2][digits_each * row + d][i % 2 * 8]) = {of_digit[d][0], of_digit[d][1]};
  }
  __syncthreads();
  const auto column = static_cast<int>(threadIdx.x) / 32;
  if (column >= digit_columns) return;
  int sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < 4 * (end - begin); i += 32) {
    const uint32_t four = *reinterpret_cast<const uint32_t*>(&to.digits[i / 4][column][i % 4 * 4]);
    sum += static_cast<int>(add_bytes(four ^ 0x80808080U, 0)) - 4 * 128;  // 128 more each: unsigned
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) factors.sum[column] = sum;
}

}  // namespace nibblenet
