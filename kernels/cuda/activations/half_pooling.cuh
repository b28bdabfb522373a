#pragma once

#include "kernels/cuda/gemm/gradient_epilogue.cuh"

// Max pooling of fp16 values, eight channels (16 bytes) per thread. Requires windows of 3 x 3 at
// stride 2 without padding, C a multiple of 8, and fewer than 2^31 elements. The general kernels in
// pooling.cu take everything else; the results have the same bits.

namespace nibblenet {

inline constexpr unsigned half_pooling_threads = 256;

/// Sizes of a pooling's input and output, with C = 8 `vectors` channels.
struct HalfPooling {
  unsigned h, w;     ///< x [N, H, W, C]
  unsigned p, q;     ///< y [N, P, Q, C]
  unsigned vectors;  ///< of eight channels

  /// Coordinates of a thread in [N, rows, columns, vectors].
  struct Place {
    unsigned n, row, column, vector;
  };
  __device__ Place place(unsigned thread, unsigned rows, unsigned columns) const {
    const unsigned pixel = thread / vectors, line = pixel / columns, n = line / rows;
    return {n, line - n * rows, pixel - line * columns, thread - pixel * vectors};
  }
};

/// Forward: y = maximum of the window, or NaN if it holds one; argmax = the position of the first
/// maximum in the window. One thread per eight channels of an output pixel.
__global__ void __launch_bounds__(half_pooling_threads)
    half_max_pool2d_forward_kernel(uint4* y, uint2* argmax, const uint4* x, HalfPooling sizes, unsigned count) {
  const unsigned thread = blockIdx.x * half_pooling_threads + threadIdx.x;
  if (thread >= count) return;
  const HalfPooling::Place place = sizes.place(thread, sizes.p, sizes.q);
  const uint4* corner =
      x + ((place.n * sizes.h + 2 * place.row) * sizes.w + 2 * place.column) * sizes.vectors + place.vector;
  uint4 window[9];
#pragma unroll
  for (unsigned r = 0; r < 3; ++r)
#pragma unroll
    for (unsigned s = 0; s < 3; ++s) window[3 * r + s] = corner[(r * sizes.w + s) * sizes.vectors];
  uint32_t best[4] = {window[0].x, window[0].y, window[0].z, window[0].w};
  uint32_t where[4] = {};  // two positions of 16 bits a word
#pragma unroll
  for (unsigned i = 1; i < 9; ++i) {
    const uint32_t candidate[4] = {window[i].x, window[i].y, window[i].z, window[i].w};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const uint32_t better = greater_fp16x2(candidate[pair], best[pair]) | nan_fp16x2(candidate[pair]);
      best[pair] = (candidate[pair] & better) | (best[pair] & ~better);
      where[pair] = (i * 0x00010001U & better) | (where[pair] & ~better);
    }
  }
  y[thread] = {best[0], best[1], best[2], best[3]};
  constexpr unsigned even_bytes = 0x6420;
  if (argmax != nullptr)
    argmax[thread] = {__byte_perm(where[0], where[1], even_bytes), __byte_perm(where[2], where[3], even_bytes)};
}

/// Eight channels of dy, and the window position that each of them flows to.
struct PooledGradient {
  uint4 dy = {0, 0, 0, 0};
  uint2 argmax = {~0U, ~0U};  ///< no position

  /// sum += dy of the channels that flow to `position`.
  __device__ __forceinline__ void add_to(float (&sum)[8], unsigned position) const {
    const uint32_t pairs[4] = {dy.x, dy.y, dy.z, dy.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t four = e < 4 ? argmax.x : argmax.y;
      if ((four >> e % 4 * 8 & 0xFFU) == position) sum[e] += fp16_in(pairs, e);
    }
  }
};

/// Backward: dx = sum of dy over the windows whose maximum is this element. One thread per eight
/// channels of the 2 x 2 input pixels from (2p, 2q) on. Only the windows (p, q), (p, q - 1), (p -
/// 1, q) and (p - 1, q - 1) contain these pixels.
__global__ void __launch_bounds__(half_pooling_threads)
    half_max_pool2d_backward_kernel(HalfGradient dx, const uint4* dy, const uint2* argmax, HalfPooling sizes,
                                    unsigned count) {
  const unsigned thread = blockIdx.x * half_pooling_threads + threadIdx.x;
  if (thread >= count) return;
  const HalfPooling::Place place = sizes.place(thread, (sizes.h + 1) / 2, (sizes.w + 1) / 2);
  PooledGradient from[2][2];  // [this row, the one above][this column, the one before]
#pragma unroll
  for (unsigned up = 0; up < 2; ++up)
#pragma unroll
    for (unsigned back = 0; back < 2; ++back) {
      // An index below 0 wraps to a large number, so one comparison checks both bounds.
      const unsigned row = place.row - up, column = place.column - back;
      if (row >= sizes.p || column >= sizes.q) continue;
      const unsigned at = ((place.n * sizes.p + row) * sizes.q + column) * sizes.vectors + place.vector;
      from[up][back] = {dy[at], argmax[at]};
    }
#pragma unroll
  for (unsigned r = 0; r < 2; ++r)
#pragma unroll
    for (unsigned s = 0; s < 2; ++s) {
      const unsigned row = 2 * place.row + r, column = 2 * place.column + s;
      if (row >= sizes.h || column >= sizes.w) continue;
      float sum[8] = {};
      // The general kernel's order of addition. Odd rows and columns lie in one window per
      // direction.
#pragma unroll
      for (unsigned up = 0; up < 2 - r; ++up)
#pragma unroll
        for (unsigned back = 0; back < 2 - s; ++back) from[up][back].add_to(sum, 3 * (r + 2 * up) + s + 2 * back);
      dx.store(((place.n * sizes.h + row) * sizes.w + column) * sizes.vectors + place.vector, eight_fp16(sum));
    }
}

}  // namespace nibblenet
