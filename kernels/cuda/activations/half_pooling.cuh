#pragma once

#include "kernels/cuda/gemm/gradient_epilogue.cuh"

// Max pooling of fp16 values, eight channels (16 bytes) a thread: windows of 3 x 3 at stride 2
// without padding, C a multiple of 8, fewer than 2^31 elements. Everything else is pooling.cu's
// general kernels', whose bits these have.

namespace nibblenet {

inline constexpr unsigned half_pooling_threads = 256;

/// Sizes of both sides of a pooling of C = 8 `vectors` channels.
struct HalfPooling {
  unsigned h, w;     ///< x [N, H, W, C]
  unsigned p, q;     ///< y [N, P, Q, C]
  unsigned vectors;  ///< of eight channels

  /// A place for each thread among [N, rows, columns, vectors].
  struct Place {
    unsigned n, row, column, vector;
  };
  __device__ Place place(unsigned thread, unsigned rows, unsigned columns) const {
    const unsigned pixel = thread / vectors, line = pixel / columns, n = line / rows;
    return {n, line - n * rows, pixel - line * columns, thread - pixel * vectors};
  }
};

/// y = maximum over the window, a NaN winning; argmax = its position in the window, the first one
/// of several. One thread eight channels of an output pixel.
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

/// Eight channels of dy, and which element of its window each of them goes to.
struct PooledGradient {
  uint4 dy = {0, 0, 0, 0};
  uint2 argmax = {~0U, ~0U};  ///< nowhere

  /// sum += dy where it goes to this position.
  __device__ __forceinline__ void add_to(float (&sum)[8], unsigned position) const {
    const uint32_t pairs[4] = {dy.x, dy.y, dy.z, dy.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t four = e < 4 ? argmax.x : argmax.y;
      if ((four >> e % 4 * 8 & 0xFFU) == position) sum[e] += fp16_in(pairs, e);
    }
  }
};

/// dx = sum of dy over the windows that chose this element. One thread eight channels of the 2 x 2
/// input pixels from (2p, 2q) on, which lie in the windows (p, q), (p, q - 1), (p - 1, q) and (p -
/// 1, q - 1) alone.
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
      // Below 0 wraps around, and is then too large as well.
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
      // In the general kernel's order; odd rows and columns lie in one window that way.
#pragma unroll
      for (unsigned up = 0; up < 2 - r; ++up)
#pragma unroll
        for (unsigned back = 0; back < 2 - s; ++back) from[up][back].add_to(sum, 3 * (r + 2 * up) + s + 2 * back);
      dx.store(((place.n * sizes.h + row) * sizes.w + column) * sizes.vectors + place.vector, eight_fp16(sum));
    }
}

}  // namespace nibblenet
