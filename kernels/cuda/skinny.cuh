#pragma once

#include "kernels/cuda/result.cuh"
#include "kernels/cuda/superblock_steps.cuh"
#include "kernels/cuda/unpack.cuh"

// Linear layers of few rows: the weights are nearly all there is to read. After Marlin (Frantar 2024, arXiv
// 2408.11743): packed codes go from memory to registers in the order of the tensor cores' fragments and are unpacked
// there.

namespace nibblenet {

inline constexpr int warps_down = 4;    ///< of a block, each on superblocks of its own rows
inline constexpr int warps_across = 2;  ///< that share these rows and take superblocks in turn
inline constexpr int block_threads = 32 * warps_down * warps_across;
inline constexpr int block_rows = warps_down * Superblocks::size;

/// One product: y [batch, rows] from x [batch, columns] and packed weights [rows, columns].
struct SkinnyProduct {
  Superblocks layout;
  const uint8_t* codes;
  CodeValues fixed = {};  ///< values by code, used where `stored` is null
  const float* stored;
  float value_factor;  ///< power of two, for values in halves
  const f16* x;
  int batch;
  int columns;  ///< a multiple of 8
  SuperblockSteps steps;
  bool inside;  ///< steps.inside()
  BiasResult<AnyElements> result;
  int parts = 0;                 ///< of the columns, each a block's
  float* partial = nullptr;      ///< [parts, batch, rows]
  unsigned* arrivals = nullptr;  ///< by block row: how many parts are done
};

/// Superblocks that a warp has in registers: while one is multiplied, the others are on their way. 2 KB and more of
/// codes are, where registers allow it.
constexpr int ring_depth(int bits, int tiles) {
  if (tiles > 1) return bits == 16 ? 1 : 2;
  return bits > 4 ? 2 : bits > 2 ? 3 : 4;
}

/// What a lane brings to the product of a superblock: its codes, and of each of its columns of x 16 neighbours.
template <int bits, int tiles>
struct LaneOperands {
  uint32_t words[Superblocks::chunks][bits];
  uint32_t x[tiles][8];
};

/// Halves [column, column + 16) of row `n` of x, zeros outside.
__device__ __forceinline__ void load_x(const SkinnyProduct& p, int n, int column, uint32_t (&to)[8]) {
  const f16* row = p.x + static_cast<int64_t>(n) * p.columns;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint4 v = {};
    const int first = column + 8 * i;
    if (n < p.batch && first < p.columns) v = *reinterpret_cast<const uint4*>(row + first);
    to[4 * i] = v.x;
    to[4 * i + 1] = v.y;
    to[4 * i + 2] = v.z;
    to[4 * i + 3] = v.w;
  }
}

template <int bits, int tiles>
__device__ __forceinline__ void load_codes(const SkinnyProduct& p, int down, int across,
                                           LaneOperands<bits, tiles>& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint8_t* block = p.codes + (down * p.layout.across() + across) * p.layout.bytes_each() + lane * 16;
#pragma unroll
  for (int i = 0; i < bits; ++i) {
    const uint4 v = load_once_16(block + i * Superblocks::row_bytes);
    to.words[4 * i / bits][4 * i % bits] = v.x;
    to.words[(4 * i + 1) / bits][(4 * i + 1) % bits] = v.y;
    to.words[(4 * i + 2) / bits][(4 * i + 2) % bits] = v.z;
    to.words[(4 * i + 3) / bits][(4 * i + 3) % bits] = v.w;
  }
}

template <int bits, int tiles>
__device__ __forceinline__ void load_x(const SkinnyProduct& p, int across, LaneOperands<bits, tiles>& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
    load_x(p, 8 * tile + lane / 4, across * Superblocks::size + lane % 4 * 16, to.x[tile]);
}

/// Sums of a warp: d[tile][f] is fragment f of superblock rows, for columns [8 tile, 8 tile + 8) of the result.
template <int tiles>
struct Sums {
  float d[tiles][4][4];
};

/// sums += superblock * x, and with zero points x_sums += sum of x, in the sums' places of every row.
template <class Codes, int tiles>
__device__ __forceinline__ void multiply(const LaneOperands<Codes::bits, tiles>& operands, const Codes& codes,
                                         const typename Codes::Table& table, bool with_x_sums, Sums<tiles>& sums,
                                         float (&x_sums)[tiles][4]) {
  constexpr uint32_t ones[4] = {0x3C003C00U, 0x3C003C00U, 0x3C003C00U, 0x3C003C00U};
#pragma unroll
  for (int chunk = 0; chunk < Superblocks::chunks; ++chunk) {
    uint32_t a[4][4];
    codes.decode(operands.words[chunk], table, a);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const uint32_t b[2] = {operands.x[tile][2 * chunk], operands.x[tile][2 * chunk + 1]};
#pragma unroll
      for (int f = 0; f < 4; ++f) mma_16816(sums.d[tile][f], a[f], b);
      if (with_x_sums) mma_16816(x_sums[tile], ones, b);
    }
  }
}

/// total += step * (sums - zero point * x_sums) for the `across`-th superblock of a row; clears both sums.
template <class Codes, int tiles>
__device__ __forceinline__ void apply_steps(const SuperblockSteps& steps, const RowGroups& groups, int across,
                                            Sums<tiles>& total, Sums<tiles>& sums, float (&x_sums)[tiles][4]) {
  const int before = steps.groups_before(across);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int group = groups.first[i] + before;
    const float step = steps.steps.scale(group);
    float zero = 0.0F;
    if constexpr (Codes::integers)
      if (steps.zero_points != nullptr) zero = static_cast<float>(steps.zero_points[group]) - Codes::zero;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int e = i % 2 * 2; e < i % 2 * 2 + 2; ++e) {
        const float sum = fmaf(-zero, x_sums[tile][e], sums.d[tile][i / 2][e]);
        total.d[tile][i / 2][e] = fmaf(step, sum, total.d[tile][i / 2][e]);
        sums.d[tile][i / 2][e] = 0.0F;
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e) x_sums[tile][e] = 0.0F;
}

/// A warp's share: superblocks first, first + warps_across, … before `end` of superblock row `down`.
template <class Codes, int tiles>
__device__ __forceinline__ void sum_superblocks(const SkinnyProduct& p, int down, int first, int end,
                                                const Codes& codes, const typename Codes::Table& table,
                                                Sums<tiles>& total) {
  constexpr int depth = ring_depth(Codes::bits, tiles);
  LaneOperands<Codes::bits, tiles> ring[depth];
#pragma unroll
  for (int i = 0; i < depth; ++i)
    if (first + i * warps_across < end) load_codes(p, down, first + i * warps_across, ring[i]);
  wait_for_kernel_before();  // which made x
#pragma unroll
  for (int i = 0; i < depth; ++i)
    if (first + i * warps_across < end) load_x(p, first + i * warps_across, ring[i]);
  const RowGroups groups(p.steps, p.result.rows, down);
  Sums<tiles> sums = {};
  float x_sums[tiles][4] = {};
  for (; first < end; first += depth * warps_across) {
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      const int across = first + i * warps_across;
      const int next = across + depth * warps_across;
      if (across >= end) break;
      multiply(ring[i], codes, table, p.steps.zero_points != nullptr, sums, x_sums);
      if (next < end) {
        load_codes(p, down, next, ring[i]);
        load_x(p, next, ring[i]);
      }
      if (p.inside) apply_steps<Codes>(p.steps, groups, across, total, sums, x_sums);
    }
  }
  if (!p.inside) total = sums;
}

/// Shared memory: the table while superblocks are multiplied, then the sums of the block's rows. The odd end spreads
/// the columns of a fragment over the banks.
template <class Table, int tiles>
union SkinnyShared {
  Table table;
  float sums[8 * tiles][block_rows + 4];
};
struct Arrival {
  bool last;
};

/// Calls use(place in shared memory, sum) for each of a warp's sums.
template <int tiles, class Use>
__device__ __forceinline__ void for_each_sum(float (&shared_sums)[8 * tiles][block_rows + 4], Sums<tiles>& sums,
                                             Use use) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(threadIdx.x) / 32 % warps_down * Superblocks::size + lane / 4;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        use(shared_sums[8 * tile + lane % 4 * 2 + e % 2][first + 16 * f + e / 2 * 8], sums.d[tile][f][e]);
}

/// y = epilogue(sum of the parts, the first one first), by the block that arrives last, whichever that is.
__device__ __forceinline__ void add_parts(const SkinnyProduct& p, int row) {
  const int64_t stride = static_cast<int64_t>(p.batch) * p.result.rows;
  for (int n = 0; n < p.batch && row < p.result.rows; ++n) {
    const float* partial = p.partial + static_cast<int64_t>(n) * p.result.rows + row;
    float sum = 0.0F;
#pragma unroll 8
    for (int part = 0; part < p.parts; ++part) sum += __ldcg(partial + part * stride);
    p.result.store(row, n, 0, sum);
  }
}

/// Stores the sums of a block's part of the columns; where there are several parts, the block that arrives last adds
/// them up. All threads; each has a row.
template <int columns>
__device__ __forceinline__ void finish_part(const SkinnyProduct& p, const float (&sums)[columns][block_rows + 4],
                                            int part) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.x) * block_rows + thread;
  if (p.parts == 1) {
    for (int n = 0; n < p.batch; ++n) p.result.store(row, n, 0, sums[n][thread]);
    return;
  }
  for (int n = 0; n < p.batch && row < p.result.rows; ++n)
    p.partial[(static_cast<int64_t>(part) * p.batch + n) * p.result.rows + row] = sums[n][thread];
  __threadfence();  // what was written is seen by whoever sees the arrival
  __syncthreads();
  auto& arrival = shared<Arrival>();
  unsigned& arrivals = p.arrivals[blockIdx.x];
  if (thread == 0) arrival.last = atomicAdd(&arrivals, 1U) == static_cast<unsigned>(p.parts) - 1U;
  __syncthreads();
  if (!arrival.last) return;
  __threadfence();
  add_parts(p, row);
  if (thread == 0) arrivals = 0;  // for the next product
}

/// y [batch, rows] = epilogue(x w^T + bias), batch <= 8 tiles. 256 threads; block (x, y) owns 256 rows and part y of
/// the columns. Warp w owns superblock row w % 4 of them and every other superblock of the part, from the (w / 4)-th
/// on: warps that read the same columns of x do so at about the same time. Parts go through memory, and the last block
/// of a row to arrive adds them up in their order: the same bits on every run.
template <class Codes, int tiles>
__global__ void __launch_bounds__(block_threads) skinny_product_kernel(SkinnyProduct p) {
  const Codes codes{};
  auto& scratch = shared<SkinnyShared<typename Codes::Table, tiles>>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int phase = warp / warps_down;
  const int down = static_cast<int>(blockIdx.x) * warps_down + warp % warps_down;
  const int part = static_cast<int>(blockIdx.y);
  const int across = static_cast<int>(p.layout.across());

  let_next_kernel_begin();
  codes.prepare(scratch.table, p.fixed, p.stored, p.value_factor);
  __syncthreads();
  Sums<tiles> sums = {};
  if (down < p.layout.down())
    sum_superblocks(p, down, across * part / p.parts + phase, across * (part + 1) / p.parts, codes, scratch.table,
                    sums);
  else
    wait_for_kernel_before();
  __syncthreads();  // nobody reads the table any more
  for (int turn = 0; turn < warps_across; ++turn) {
    if (phase == turn) for_each_sum(scratch.sums, sums, [&](float& to, float sum) { to = turn == 0 ? sum : to + sum; });
    __syncthreads();
  }
  finish_part(p, scratch.sums, part);
}

}  // namespace nibblenet
