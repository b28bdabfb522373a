#pragma once

#include "kernels/cuda/linear/few_rows_results.cuh"
#include "kernels/cuda/weights/superblock_scales.cuh"
#include "kernels/cuda/weights/unpack.cuh"

// Linear layers of few rows (small batches, GEMV-like). Time goes to reading the weights, so what
// counts is the number of bytes in flight. Packed codes lie in the order of the mma fragments and
// are unpacked in registers (Marlin, Frantar 2024, arXiv 2408.11743).

namespace nibblenet {

inline constexpr int few_rows_row_warps = 4;     ///< of a block, each on superblocks of its own rows
inline constexpr int few_rows_column_warps = 2;  ///< warps that share rows and take superblocks in turn
inline constexpr int few_rows_threads = 32 * few_rows_row_warps * few_rows_column_warps;
inline constexpr int few_rows_block_rows = few_rows_row_warps * Superblocks::size;

/// Parameters of the kernel: y [batch, rows] from x [batch, columns] and packed weights [rows,
/// columns].
struct FewRows {
  Superblocks layout;
  const uint8_t* codes;
  CodeValues fixed = {};  ///< values by code, used where `stored` is null
  const float* stored;
  float value_factor;  ///< power of two, for values in fp16
  const f16* x;
  int columns;  ///< a multiple of 8
  SuperblockSteps steps;
  SplitResults results;
};

/// Pieces of a superblock, each copied as one group: one, or its four chunks where codes are fp16
/// values.
template <int bits>
inline constexpr int few_rows_pieces = bits == 16 ? Superblocks::chunks : 1;
/// 16-byte loads per lane of a piece, and chunks in it.
template <int bits>
inline constexpr int few_rows_piece_loads = bits / few_rows_pieces<bits>;
template <int bits>
inline constexpr int few_rows_piece_chunks = Superblocks::chunks / few_rows_pieces<bits>;

/// A stage of the rings: a piece for each warp. A lane reads only what it copied itself, so there
/// are no barriers.
template <int bits>
struct FewRowsStage {
  uint4 pieces[few_rows_row_warps * few_rows_column_warps][few_rows_piece_loads<bits>][32];
};
/// Pieces of a warp in flight or in use: as many as shared memory holds.
template <class Codes>
constexpr int few_rows_stages(bool of_90) {
  return (few_rows_shared_bytes(of_90) - static_cast<int>(sizeof(typename Codes::Table))) /
         static_cast<int>(sizeof(FewRowsStage<Codes::bits>));
}

/// Dynamic shared memory: the look-up table and the rings, then the sums of the block's rows.
/// Padding spreads the columns of a fragment over the banks.
template <class Codes, int tiles, int stages>
union FewRowsShared {
  struct {
    alignas(16) typename Codes::Table table;
    alignas(16) FewRowsStage<Codes::bits> ring[stages];
  } operands;
  float sums[8 * tiles][few_rows_block_rows + 4];

  /// Bytes that a block needs whose warps have at most `superblocks` each.
  static size_t bytes(int64_t superblocks) {
    const int64_t used = superblocks * few_rows_pieces<Codes::bits>;
    const size_t unused = static_cast<size_t>(stages > used ? stages - used : 0) * sizeof(FewRowsStage<Codes::bits>);
    return sizeof(operands) - unused < sizeof(sums) ? sizeof(sums) : sizeof(operands) - unused;
  }
};

/// A warp's superblocks: tile_column, tile_column + few_rows_column_warps, … before `end`, of
/// superblock row `tile_row`.
struct FewRowsShare {
  int tile_row;
  int tile_column;
  int end;
};

/// Loads fp16 values [column, column + 16) of row `n` of x, with zeros outside.
__device__ __forceinline__ void load_few_rows_x(const FewRows& p, int n, int column, uint32_t (&to)[8]) {
  const f16* row = p.x + static_cast<int64_t>(n) * p.columns;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint4 v = {};
    const int first = column + 8 * i;
    if (n < p.results.batch && first < p.columns) v = *reinterpret_cast<const uint4*>(row + first);
    to[4 * i] = v.x;
    to[4 * i + 1] = v.y;
    to[4 * i + 2] = v.z;
    to[4 * i + 3] = v.w;
  }
}

/// Loads a lane's part of x for superblock `tile_column` of a row: 16 neighbours of each of its
/// columns.
template <int tiles>
__device__ __forceinline__ void load_few_rows_x(const FewRows& p, int tile_column, uint32_t (&to)[tiles][8]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
    load_few_rows_x(p, 8 * tile + lane / 4, tile_column * Superblocks::size + lane % 4 * 16, to[tile]);
}

/// Starts copying piece `piece` of a share, if it exists, and closes its cp.async group.
template <int bits>
__device__ __forceinline__ void copy_piece(const FewRows& p, const FewRowsShare& share, int piece,
                                           uint4 (&to)[few_rows_piece_loads<bits>][32]) {
  constexpr int pieces = few_rows_pieces<bits>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tile_column = share.tile_column + piece / pieces * few_rows_column_warps;
  if (tile_column < share.end) {
    const uint8_t* from = p.codes + (share.tile_row * p.layout.tile_columns() + tile_column) * p.layout.bytes_each() +
                          piece % pieces * few_rows_piece_loads<bits> * Superblocks::row_bytes + lane * 16;
#pragma unroll
    for (int i = 0; i < few_rows_piece_loads<bits>; ++i)
      cp_async_16(&to[i][lane], from + i * Superblocks::row_bytes, true);
  }
  cp_async_commit();
}

/// Reads a lane's words of a piece, chunk by chunk.
template <int bits>
__device__ __forceinline__ void read_piece(const uint4 (&piece)[few_rows_piece_loads<bits>][32],
                                           uint32_t (&words)[few_rows_piece_chunks<bits>][bits]) {
#pragma unroll
  for (int i = 0; i < few_rows_piece_loads<bits>; ++i) {
    const uint4 v = piece[i][threadIdx.x % 32];
    words[4 * i / bits][4 * i % bits] = v.x;
    words[(4 * i + 1) / bits][(4 * i + 1) % bits] = v.y;
    words[(4 * i + 2) / bits][(4 * i + 2) % bits] = v.z;
    words[(4 * i + 3) / bits][(4 * i + 3) % bits] = v.w;
  }
}

/// A warp's sums: d[tile][f] is fragment f of its superblock row, for columns [8 tile, 8 tile + 8)
/// of the result.
template <int tiles>
struct FewRowsSums {
  float d[tiles][4][4];
};

/// A fragment all of whose codes are `code`, as subnormals() has them.
template <class Codes>
__device__ __forceinline__ void fill_fragment(unsigned code, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) a[r] = in_both_halves(code << Codes::subnormal_place(r));
}

/// sums += chunk * x. Linear codes are multiplied as subnormal values, zero included; x_sums +=
/// `zeros` * x, in the sums' places of every row, is what has to be taken away. Both are added in
/// the same order, so a row of zeros becomes 0.
template <class Codes, int tiles>
__device__ __forceinline__ void multiply(const uint32_t (&words)[Codes::bits], const uint32_t (&x)[tiles][8], int chunk,
                                         const typename Codes::Table& table, const uint32_t (&zeros)[4],
                                         FewRowsSums<tiles>& sums, float (&x_sums)[tiles][4]) {
  uint32_t a[4][4];
  if constexpr (Codes::integers)
    Codes{}.subnormals(words, a);
  else
    Codes{}.decode(words, table, a);
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t b[2] = {x[tile][2 * chunk], x[tile][2 * chunk + 1]};
#pragma unroll
    for (int f = 0; f < 4; ++f) mma_16816(sums.d[tile][f], a[f], b);
    if constexpr (Codes::integers) mma_16816(x_sums[tile], zeros, b);
  }
}

/// Scales of a lane's eight rows of a superblock.
struct LaneSteps {
  float step[8];
  uint8_t zero_point[8];

  __device__ LaneSteps() {}
  __device__ LaneSteps(const SuperblockSteps& steps, const RowGroups& groups, int tile_column) {
    const int before = steps.groups_before(tile_column);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      step[i] = steps.steps.scale(groups.first[i] + before);
      if (steps.zero_points != nullptr) zero_point[i] = steps.zero_points[groups.first[i] + before];
    }
  }
};

/// What the sums of row i of a lane's eight are to be multiplied by: linear codes were subnormal.
template <class Codes>
constexpr float sums_factor(int i) {
  if constexpr (Codes::integers) return static_cast<float>(1 << (24 - Codes::subnormal_place(i)));
  return 1.0F;
}

/// total += step * (sums - zeros of x_sums) for a superblock; clears both sums. x_sums have ones in
/// place of zeros where there are zero points.
template <class Codes, int tiles>
__device__ __forceinline__ void apply_steps(const LaneSteps& steps, bool with_zero_points, FewRowsSums<tiles>& total,
                                            FewRowsSums<tiles>& sums, float (&x_sums)[tiles][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float zero = 0.0F;
    if constexpr (Codes::integers) zero = with_zero_points ? static_cast<float>(steps.zero_point[i]) : 1.0F;
    const float step = steps.step[i] * sums_factor<Codes>(i);
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

/// total = sums without the zeros, for a lane's eight rows.
template <class Codes, int tiles>
__device__ __forceinline__ void take_zeros_away(FewRowsSums<tiles>& total, const FewRowsSums<tiles>& sums,
                                                const float (&x_sums)[tiles][4]) {
  total = sums;
  if constexpr (Codes::integers)
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
        for (int e = i % 2 * 2; e < i % 2 * 2 + 2; ++e)
          total.d[tile][i / 2][e] = (sums.d[tile][i / 2][e] - x_sums[tile][e]) * sums_factor<Codes>(i);
}

/// A lane's part of x for a warp's superblocks, one after the other.
template <int tiles, bool at_once>
class FewRowsX {
 public:
  __device__ FewRowsX(const FewRows& p, int tile_column) : p_(p) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (at_once)
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        const int n = 8 * tile + lane / 4;
        const int row = n < p.results.batch ? n : 0;  // what becomes of rows past the batch is not stored
        of_lane_[tile] = p.x + static_cast<int64_t>(row) * p.columns + tile_column * Superblocks::size + lane % 4 * 16;
      }
  }
  /// Loads the part for superblock `tile_column` of a row: of the next one of the warp.
  __device__ __forceinline__ void load(int tile_column, uint32_t (&to)[tiles][8]) {
    if constexpr (!at_once) {
      load_few_rows_x<tiles>(p_, tile_column, to);
    } else {
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 v = *reinterpret_cast<const uint4*>(of_lane_[tile] + 8 * i);
          to[tile][4 * i] = v.x;
          to[tile][4 * i + 1] = v.y;
          to[tile][4 * i + 2] = v.z;
          to[tile][4 * i + 3] = v.w;
        }
        of_lane_[tile] += few_rows_column_warps * Superblocks::size;
      }
    }
  }

 private:
  const FewRows& p_;
  const f16* of_lane_[tiles];  ///< only where x needs no checks
};

/// Sums of a warp's share. The first codes are in flight before the kernel before has ended. x and
/// scales are read one superblock ahead. `inside`: scales, or zero points, are applied per
/// superblock. `at_once`: all of the share is in flight already, and superblocks have no columns
/// past the end of x.
template <class Codes, int tiles, bool inside, bool at_once, int stages>
__device__ __forceinline__ void sum_superblocks(const FewRows& p, const FewRowsShare& share,
                                                FewRowsShared<Codes, tiles, stages>& memory,
                                                FewRowsSums<tiles>& total) {
  constexpr int bits = Codes::bits;
  const unsigned warp = threadIdx.x / 32;
  auto& ring = memory.operands.ring;
  const bool with_zero_points = inside && p.steps.zero_points != nullptr;
  uint32_t zeros[4] = {};
  if constexpr (Codes::integers) fill_fragment<Codes>(with_zero_points ? 1U : Codes::zero, zeros);
  const RowGroups groups(p.steps, p.results.epilogue.rows, share.tile_row);
  FewRowsX<tiles, at_once> of_share(p, share.tile_column);
  uint32_t next_x[tiles][8] = {};
  LaneSteps next_steps;
  const auto read_ahead = [&](int tile_column) {
    if (tile_column >= share.end) return;
    of_share.load(tile_column, next_x);
    if constexpr (inside) next_steps = LaneSteps(p.steps, groups, tile_column);
  };
  read_ahead(share.tile_column);
  FewRowsSums<tiles> sums = {};
  float x_sums[tiles][4] = {};
  int piece = 0;
  int stage = 0;
#pragma unroll 1
  for (int tile_column = share.tile_column; tile_column < share.end; tile_column += few_rows_column_warps) {
    uint32_t x[tiles][8];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int i = 0; i < 8; ++i) x[tile][i] = next_x[tile][i];
    const LaneSteps steps = next_steps;
    read_ahead(tile_column + few_rows_column_warps);
#pragma unroll
    for (int chunk = 0; chunk < Superblocks::chunks; chunk += few_rows_piece_chunks<bits>) {
      cp_async_wait<stages - 1>();
      uint32_t words[few_rows_piece_chunks<bits>][bits];
      read_piece<bits>(ring[stage].pieces[warp], words);
#pragma unroll
      for (int i = 0; i < few_rows_piece_chunks<bits>; ++i)
        multiply<Codes>(words[i], x, chunk + i, memory.operands.table, zeros, sums, x_sums);
      if constexpr (at_once) {
        cp_async_commit();
        ++stage;
      } else {
        copy_piece<bits>(p, share, piece + stages, ring[stage].pieces[warp]);
        ++piece;
        stage = stage + 1 < stages ? stage + 1 : 0;
      }
    }
    if constexpr (inside) apply_steps<Codes>(steps, with_zero_points, total, sums, x_sums);
  }
  cp_async_wait<0>();
  if constexpr (!inside) take_zeros_away<Codes>(total, sums, x_sums);
}

/// Calls use(element in shared memory, sum) for each sum of a warp.
template <int tiles, class Use>
__device__ __forceinline__ void for_each_sum(float (&shared_sums)[8 * tiles][few_rows_block_rows + 4],
                                             FewRowsSums<tiles>& sums, Use use) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(threadIdx.x) / 32 % few_rows_row_warps * Superblocks::size + lane / 4;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        use(shared_sums[8 * tile + lane % 4 * 2 + e % 2][first + 16 * f + e / 2 * 8], sums.d[tile][f][e]);
}

/// Blocks per multiprocessor that registers allow: the next layer's copies begin before this layer
/// ends.
template <int tiles, bool inside>
inline constexpr int few_rows_blocks = tiles == 1 && !inside ? 2 : 1;

/// A block of few_rows_kernel, with `stages` of the rings.
template <class Codes, int tiles, bool inside, int stages>
__device__ __forceinline__ void few_rows_block(const FewRows& p) {
  auto& memory = *reinterpret_cast<FewRowsShared<Codes, tiles, stages>*>(dynamic_shared());
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int phase = warp / few_rows_row_warps;
  const int split = static_cast<int>(blockIdx.y);
  const int tile_column = static_cast<int>(p.layout.tile_columns());
  FewRowsShare share{static_cast<int>(blockIdx.x) * few_rows_row_warps + warp % few_rows_row_warps,
                     tile_column * split / p.results.splits + phase, tile_column * (split + 1) / p.results.splits};
  if (share.tile_row >= p.layout.tile_rows()) share.end = 0;  // no such rows

  pdl_trigger();
#pragma unroll
  for (int piece = 0; piece < stages; ++piece)
    copy_piece<Codes::bits>(p, share, piece, memory.operands.ring[piece].pieces[warp]);
  Codes{}.prepare(memory.operands.table, p.fixed, p.stored, p.value_factor);
  __syncthreads();
  FewRowsSums<tiles> sums = {};
  pdl_wait();                                                   // the kernel before made x
  constexpr bool can_be_at_once = !inside && Codes::bits < 16;  // fp16 values of a share fill no ring
  const int most = share.tile_column + stages / few_rows_pieces<Codes::bits> * few_rows_column_warps;
  if (can_be_at_once && p.columns % Superblocks::size == 0 && share.end <= most)
    sum_superblocks<Codes, tiles, inside, can_be_at_once, stages>(p, share, memory, sums);
  else
    sum_superblocks<Codes, tiles, inside, false, stages>(p, share, memory, sums);
  __syncthreads();  // all threads are done reading the table
  for (int turn = 0; turn < few_rows_column_warps; ++turn) {
    if (phase == turn) for_each_sum(memory.sums, sums, [&](float& to, float sum) { to = turn == 0 ? sum : to + sum; });
    __syncthreads();
  }
  const int row = static_cast<int>(threadIdx.x);
  finish_split(p.results, static_cast<int>(blockIdx.x) * few_rows_block_rows + row, split,
               [&](int n) { return memory.sums[n][row]; });
}

/// Few-rows product: y [batch, rows] = epilogue(x w^T + bias), batch <= 8 tiles. 256 threads. Block
/// (x, y) owns 256 rows and split y of the columns. Warp w owns superblock row w % 4 of the block,
/// and every other superblock of the split from the (w / 4)-th on. Warps that read the same columns
/// of x do so at about the same time. Split-K: partial sums go through memory, and the last block
/// of a row to arrive adds them in their order: the same bits on every run.
template <class Codes, int tiles, bool inside>
__global__ void __launch_bounds__(few_rows_threads, few_rows_blocks<tiles, inside>) few_rows_kernel(FewRows p) {
  if (compiled_for_90())
    few_rows_block<Codes, tiles, inside, few_rows_stages<Codes>(true)>(p);
  else
    few_rows_block<Codes, tiles, inside, few_rows_stages<Codes>(false)>(p);
}

}  // namespace nibblenet
