#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/weights/readers.cuh"

// The plain product kernels, for every convolution and linear layer: c(i, j) = sum over k of a(i,
// k) b(j, k). The operand types define a, b and c. A block owns 64 x 64 results and loops over
// k-tiles of 32.

namespace nibblenet {

inline constexpr int plain_tile = 64;   ///< results of a block, each way
inline constexpr int plain_depth = 32;  ///< of k, between two barriers

/// Operand tiles of the float32 kernel, k by k. Odd row lengths spread columns over the banks.
struct Float32Tiles {
  float a[plain_depth][plain_tile + 1];
  float b[plain_depth][plain_tile + 1];
};

/// Float32 product, for training and as the reference of the faster kernels. 256 threads; thread (t
/// % 16, t / 16) owns the 4 x 4 results i = t % 16 + 16 u, j = t / 16 + 16 v. Block (x, y, z) owns
/// columns j, rows i and the split [z depth, (z + 1) depth) of k. Per k-tile, each thread loads a
/// row of 8 elements of both operands.
///   operand: void prepare(CodeValues&);
///            fill(first, k, const CodeValues&, float (&tile)[32][65]), zeros outside
///   result:  void store(i, j, z, sum)
template <class A, class B, class Store>
__global__ void __launch_bounds__(256) float32_product_kernel(A a, B b, Store epilogue, int length, int depth) {
  auto& tiles = shared<Float32Tiles>();
  auto& table = shared<CodeValues>();
  const int thread = static_cast<int>(threadIdx.x);
  const int first_i = static_cast<int>(blockIdx.y) * plain_tile;
  const int first_j = static_cast<int>(blockIdx.x) * plain_tile;
  const int begin = static_cast<int>(blockIdx.z) * depth;
  const int end = begin + depth < length ? begin + depth : length;
  const int i = thread % 16;
  const int j = thread / 16;

  a.prepare(table);
  __syncthreads();
  float sum[4][4] = {};
  for (int k = begin; k < end; k += plain_depth) {
    a.fill(first_i, k, table, tiles.a);
    b.fill(first_j, k, table, tiles.b);
    __syncthreads();
#pragma unroll 8
    for (int step = 0; step < plain_depth; ++step) {
      float left[4];
      float right[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        left[u] = tiles.a[step][i + 16 * u];
        right[u] = tiles.b[step][j + 16 * u];
      }
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int v = 0; v < 4; ++v) sum[u][v] = fmaf(left[u], right[v], sum[u][v]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int v = 0; v < 4; ++v)
#pragma unroll
    for (int u = 0; u < 4; ++u)
      epilogue.store(first_i + i + 16 * u, first_j + j + 16 * v, static_cast<int>(blockIdx.z), sum[u][v]);
}

/// Fills a tile from an operand whose neighbours in memory share a row. Thread t loads elements [8
/// (t % 4), 8 (t % 4) + 8) of row t / 4.
template <class Load>
__device__ __forceinline__ void fill_along_k(float (&to)[plain_depth][plain_tile + 1], Load load) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / 4;
  const int k = thread % 4 * 8;
  float v[8];
  load(row, k, v);
#pragma unroll
  for (int u = 0; u < 8; ++u) to[k + u][row] = v[u];
}

/// Fills a tile from an operand whose neighbours in memory share k. Thread t loads rows [8 (t % 8),
/// 8 (t % 8) + 8) of k = t / 8.
template <class Load>
__device__ __forceinline__ void fill_along_rows(float (&to)[plain_depth][plain_tile + 1], Load load) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread % 8 * 8;
  const int k = thread / 8;
  float v[8];
  load(row, k, v);
#pragma unroll
  for (int u = 0; u < 8; ++u) to[k][row + u] = v[u];
}

/// Operand: filters [K, R S C] in any storage.
template <class Weights>
struct FilterOperand {
  Weights weights;
  __device__ void prepare(CodeValues& table) const { weights.prepare(table); }
  __device__ void fill(int first, int k, const CodeValues& table, float (&to)[plain_depth][plain_tile + 1]) const {
    fill_along_k(to, [&](int row, int step, float(&v)[8]) { weights.load8(first + row, k + step, table, v); });
  }
};

/// Operand: a matrix with rows, such as Windows and Contributions.
template <class Matrix>
struct RowOperand {
  Matrix matrix;
  __device__ void fill(int first, int k, const CodeValues&, float (&to)[plain_depth][plain_tile + 1]) const {
    fill_along_k(to, [&](int row, int step, float(&v)[8]) { matrix.load8(matrix.row(first + row), k + step, v); });
  }
};

/// Operand tiles of the fp16 kernel, double-buffered: while one pair is multiplied, the next one is
/// copied. A row is 80 bytes long, so that ldmatrix reads eight rows without a bank conflict.
struct HalfTiles {
  f16 a[2][plain_tile][plain_depth + 8];
  f16 b[2][plain_tile][plain_depth + 8];
};
/// Results in shared memory, pixel by pixel, so that neighbouring threads write neighbouring
/// channels.
struct ResultTile {
  float c[plain_tile][plain_tile + 1];
};

/// Fp16 product on the tensor cores, with weights rounded to fp16 as they are decoded, and float32
/// sums: y[j, i] = epilogue(sum over k of w[i, k] x[j, k] + bias[i]), i filters, j output pixels.
/// 128 threads; warp (u, v) of 2 x 2 owns 32 filters x 32 pixels, two by four tiles of
/// mma.m16n8k16. `factor`: a power of two that brings the weights into the middle of fp16's range.
/// `aligned`: C is a multiple of 8, so that x is copied 16 bytes at a time while the tile before is
/// multiplied.
template <class Weights, class Y>
__global__ void __launch_bounds__(128, 4) half_product_kernel(Weights weights, Windows<f16> x, BiasEpilogue<Y> epilogue,
                                                              int length, float factor, bool aligned) {
  auto& tiles = shared<HalfTiles>();
  auto& table = shared<CodeValues>();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_i = thread / 32 % 2 * 32;
  const int warp_j = thread / 64 * 32;
  const int first_i = static_cast<int>(blockIdx.y) * plain_tile;
  const int first_j = static_cast<int>(blockIdx.x) * plain_tile;

  // Thread t loads elements [8 (t % 4), 8 (t % 4) + 8) of rows t / 4 and t / 4 + 32 of either tile.
  const int step = thread % 4 * 8;
  const Windows<f16>::Row rows[2] = {x.row(first_j + thread / 4), x.row(first_j + thread / 4 + 32)};
  const auto fill = [&](int buffer, int k) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int row = thread / 4 + 32 * u;
      if (aligned) {
        const int tap = (k + step) / x.sizes.c;
        const bool inside = rows[u].image != nullptr && k + step < length;
        const f16* source = inside ? x.at(rows[u], tap, k + step - tap * x.sizes.c) : nullptr;
        cp_async_16(&tiles.b[buffer][row][step], source != nullptr ? source : x.x, source != nullptr);
      } else {
        float v[8];
        x.load8(rows[u], k + step, v);
#pragma unroll
        for (int e = 0; e < 8; ++e) store_element(&tiles.b[buffer][row][step], e, v[e]);
      }
    }
    cp_async_commit();
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int row = thread / 4 + 32 * u;
      float w[8];
      weights.load8(first_i + row, k + step, table, w);
#pragma unroll
      for (int e = 0; e < 8; ++e) store_element(&tiles.a[buffer][row][step], e, w[e] * factor);
    }
  };

  weights.prepare(table);
  __syncthreads();
  fill(0, 0);
  float sum[2][4][4] = {};
  for (int k = 0, buffer = 0; k < length; k += plain_depth, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has landed, and all threads are done reading the other one
    if (k + plain_depth < length) fill(buffer ^ 1, k + plain_depth);
#pragma unroll
    for (int depth = 0; depth < plain_depth; depth += 16) {
      uint32_t a[2][4];
      uint32_t b[4][2];
#pragma unroll
      for (int u = 0; u < 2; ++u)
        ldmatrix_x4(a[u], &tiles.a[buffer][warp_i + 16 * u + lane % 16][depth + lane / 16 * 8]);
#pragma unroll
      for (int v = 0; v < 4; v += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, &tiles.b[buffer][warp_j + 8 * v + lane / 16 * 8 + lane % 8][depth + lane / 8 % 2 * 8]);
        b[v][0] = pair[0];
        b[v][1] = pair[1];
        b[v + 1][0] = pair[2];
        b[v + 1][1] = pair[3];
      }
#pragma unroll
      for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int v = 0; v < 4; ++v) mma_16816(sum[u][v], a[u], b[v]);
    }
  }

  auto& results = shared<ResultTile>();
#pragma unroll
  for (int u = 0; u < 2; ++u)
#pragma unroll
    for (int v = 0; v < 4; ++v)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        results.c[warp_j + 8 * v + lane % 4 * 2 + e % 2][warp_i + 16 * u + lane / 4 + e / 2 * 8] = sum[u][v][e];
  __syncthreads();
  for (int e = thread; e < plain_tile * plain_tile; e += 128)
    epilogue.store(first_i + e % plain_tile, first_j + e / plain_tile, 0, results.c[e / plain_tile][e % plain_tile]);
}

}  // namespace nibblenet
