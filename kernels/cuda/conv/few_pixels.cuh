#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/gemm/mma_tile.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// Convolutions of few output pixels, where large tiles would give only a handful of long blocks.
// The tiles here are small, and k is cut twice: between the warps of a block, which multiply
// without barriers, and between blocks (split-K). As in linear/few_rows.cuh, packed codes go from
// memory to registers in the order of the mma fragments and are unpacked there (Marlin, Frantar
// 2024, arXiv 2408.11743). Trellis strings pass through shared memory on the way, where lanes meet
// the words that they share.

namespace nibblenet {

inline constexpr int few_pixels_threads = 32 * few_pixels_warps;
inline constexpr int few_pixels_stages = 2;  ///< of a warp's pixels: one stage is multiplied, the other is in flight
/// Superblocks of a warp in flight. Registers cannot hold two of fp16 values.
template <class Codes>
inline constexpr int few_pixels_depth = std::is_same_v<Codes, HalfCodes> ? 1 : few_pixels_stages;
/// Columns of a block.
template <class Codes, bool pools>
inline constexpr int columns_of = few_pixels_columns(pools, code_table_bytes(Codes::bits, Codes::integers));
/// Upper bound of a thread's registers. Where it causes no spills, it leaves room on a
/// multiprocessor for a block of the next linear layer: 256 threads of 72 registers with linear
/// codes (linear/few_rows.cuh). That block then loads its weights before this kernel ends.
template <class Codes, bool pools>
inline constexpr int few_pixels_registers = (Codes::integers && Codes::bits <= (pools ? 4 : 5))
                                                ? 65536 / few_pixels_threads - 72
                                                : 255;
/// Groups of four neighbouring rows of a column that a thread adds up. It may lack the last one.
template <int columns>
inline constexpr int few_pixels_fours = ceil_div(columns / 4 * few_pixels_rows, few_pixels_threads);

/// Place of a superblock along k: a slice of 64 channels at one tap.
struct TapSlice {
  int row = 0, column = 0;  ///< of the tap
  int slice = 0;

  constexpr TapSlice() = default;
  constexpr TapSlice(const ConvolutionSizes& s, int superblock) {
    const int slices = s.c / slice_channels;
    const int tap = superblock / slices;
    row = tap / s.size;
    column = tap - row * s.size;
    slice = superblock - tap * slices;
  }
  /// Moves on by the superblocks in front of `step`.
  __device__ __forceinline__ void move(const ConvolutionSizes& s, const TapSlice& step) {
    const int slices = s.c / slice_channels;
    row += step.row;
    column += step.column;
    slice += step.slice;
    if (slice >= slices) {
      slice -= slices;
      ++column;
    }
    if (column >= s.size) {
      column -= s.size;
      ++row;
    }
  }
};

/// Parameters of the kernel: y [N, P, Q, K] from x [N, H, W, C] and packed filters [K, R S C], and
/// fused max pooling where it is asked for. C is a multiple of 64.
struct FewPixels {
  SuperblockWeights weights = {};    ///< whose steps do not change along k
  bool weights_from_before = false;  ///< the kernel before made them
  Windows<f16> windows;
  TapSlice step = {};  ///< from a warp's superblock to its next one
  BiasEpilogue<AnyElements> epilogue = {};
  bool by_fours;                   ///< fp16 values of y lie so that four rows can be stored at once
  int splits = 1;                  ///< of the superblocks along k, each a block's
  float* partial = nullptr;        ///< [splits, blocks, fours, threads, 4]
  unsigned* semaphores = nullptr;  ///< by block: how many splits are done
  bool clustered = false;          ///< the splits of a tile are a cluster, and need neither of these
  PooledTiles tiles = {};          ///< with fused max pooling
  bool flat = false;               ///< pooled y is [N, K P Q], as PyTorch flattens it
};

/// Where a block's tile of results lies in the images, with fused max pooling.
struct PooledTile {
  int image;
  int row, column;  ///< of the first window in the image's pooled results

  __device__ PooledTile(const PooledTiles& tiles, int block)
      : image(block / tiles.of_image()),
        row((block - image * tiles.of_image()) / tiles.across * tiles.p),
        column(block % tiles.across * tiles.q) {}
};

/// The window of an output pixel: where it begins, and which of its rows and columns lie in the
/// padding.
struct PixelWindow {
  int first;         ///< element of x, channel 0
  unsigned outside;  ///< bit r: row r; bit 16 + s: column s; all where there is no such pixel

  PixelWindow() = default;
  __device__ PixelWindow(const Windows<f16>& windows, const Windows<f16>::Row& row) : first(0), outside(~0U) {
    const ConvolutionSizes& s = windows.sizes;
    if (row.image == nullptr) return;
    first = static_cast<int>(row.image - windows.x) + (row.h * s.w + row.w) * s.c;
    for (int i = 0; i < s.size; ++i) {
      if (row.h + i >= 0 && row.h + i < s.h) outside &= ~(1U << i);
      if (row.w + i >= 0 && row.w + i < s.w) outside &= ~(1U << (few_pixels_largest_window + i));
    }
  }
};

/// The window that column `column` of a block belongs to.
template <bool pools, int columns>
__device__ __forceinline__ PixelWindow window_of_column(const FewPixels& p, int block, int column) {
  if constexpr (!pools) {
    return {p.windows, p.windows.row(block * columns + column)};
  } else {
    const PooledTile tile(p.tiles, block);
    const int down = column / p.tiles.width();
    const int row = tile.row * p.tiles.pool.stride + down;
    const int across = tile.column * p.tiles.pool.stride + column - down * p.tiles.width();
    const bool exists = down < p.tiles.height() && row < p.windows.sizes.p && across < p.windows.sizes.q;
    return {p.windows, exists ? p.windows.row(tile.image, row, across) : Windows<f16>::Row{}};
  }
}

/// Windows of every fourth column of a block: of those whose input a lane copies.
template <int columns>
struct alignas(16) LaneWindows {
  static constexpr int lanes = slice_bytes / 16;  ///< that share a column
  static constexpr int groups = 32 / lanes;
  static constexpr int count = columns / groups;
  static_assert(columns % groups == 0);
  PixelWindow of[count];
};
template <int columns>
using BlockWindows = LaneWindows<columns>[LaneWindows<columns>::groups];

/// Operands in shared memory: the look-up table, each warp's pixels, 64 channels at a time, and
/// each warp's string tile.
template <class Codes, int columns>
struct FewPixelsOperands {
  alignas(16) typename Codes::Table table;
  alignas(16) unsigned char pixels[few_pixels_warps][few_pixels_stages][columns * slice_bytes];
};
template <int quarters, int columns>
struct FewPixelsOperands<StringCodes<quarters>, columns> : FewPixelsOperands<HalfCodes, columns> {
  alignas(16) unsigned char strings[few_pixels_warps][StringTile<quarters>::bytes];
};

/// Dynamic shared memory of a block: the windows of its pixels, and the steps and epilogues of its
/// rows. Beside them lie first the operands, later each warp's sums. The padding spreads the
/// columns of a fragment over the banks.
template <class Codes, int columns>
struct FewPixelsShared {
  BlockWindows<columns> windows;
  alignas(16) BiasEpilogue<AnyElements>::Row rows[few_pixels_rows];
  uint32_t steps[few_pixels_rows];  ///< packed_steps, where weights have them inside
  union {
    FewPixelsOperands<Codes, columns> operands;
    alignas(16) float sums[few_pixels_warps][columns][few_pixels_rows + 4];
  };
};

/// A lane's part of a superblock: its words.
template <class Codes>
struct LaneCodes {
  uint32_t words[Superblocks::chunks][Codes::bits];
};
/// A lane's part of a string tile: every 32nd vector.
template <int quarters>
struct LaneCodes<StringCodes<quarters>> {
  using Tile = StringTile<quarters>;
  static constexpr int count = (Tile::vectors + 31) / 32;
  uint4 vectors[count];

  static __device__ int vector(int i) { return static_cast<int>(threadIdx.x) % 32 + 32 * i; }
  /// Stores the vectors in the warp's tile.
  __device__ __forceinline__ void store(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (vector(i) < Tile::vectors) *reinterpret_cast<uint4*>(tile + Tile::place(vector(i))) = vectors[i];
  }
};

/// Loads a lane's parts of its warp's superblocks of a row: `tile_column`, and every eighth from
/// there on.
template <class Codes>
class LaneSource {
 public:
  __device__ LaneSource(const SuperblockWeights& w, int tile_row, int tile_column)
      : next_(w.codes + (tile_row * w.layout.tile_columns() + tile_column) * bytes + threadIdx.x % 32 * 16) {}

  /// Starts loading the next one.
  __device__ __forceinline__ void load(LaneCodes<Codes>& to) {
    load_lane_words<Codes::bits>(next_, to.words);
    next_ += few_pixels_warps * bytes;
  }

 private:
  static constexpr int bytes = Superblocks::row_bytes * Codes::bits;  ///< of a superblock
  const uint8_t* next_;
};
template <int quarters>
class LaneSource<StringCodes<quarters>> {
 public:
  __device__ LaneSource(const SuperblockWeights& w, int tile_row, int tile_column)
      : weights_(w), tile_row_(tile_row), tile_column_(tile_column) {}

  __device__ __forceinline__ void load(LaneCodes<StringCodes<quarters>>& to) {
    const StringTileSource<quarters> source(weights_.strings, weights_.codes, tile_row_);
#pragma unroll
    for (int i = 0; i < to.count; ++i)
      if (const int vector = to.vector(i); vector < StringTile<quarters>::vectors)
        to.vectors[i] = load_once_16(source.vector(tile_column_, vector));
    tile_column_ += few_pixels_warps;
  }

 private:
  const SuperblockWeights& weights_;
  int tile_row_, tile_column_;
};
/// A lane's part of its warp's superblocks in flight.
template <class Codes>
using FewPixelsCodes = LaneCodes<Codes>[few_pixels_depth<Codes>];

/// Copies the input of a block's pixels for one warp: 64 channels at one tap for each superblock.
template <int columns>
class WindowCopies {
  using OfLane = LaneWindows<columns>;

 public:
  /// `first`: place of the warp's first superblock.
  __device__ WindowCopies(const FewPixels& p, const BlockWindows<columns>& windows, const TapSlice& first)
      : p_(p), windows_(windows), at_(first) {}

  /// Starts copying for the next superblock. Writes zeros in the padding, and for pixels that do
  /// not exist.
  __device__ __forceinline__ void start(unsigned char* to) {
    const ConvolutionSizes& s = p_.windows.sizes;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int vector = lane % OfLane::lanes;
    const int group = lane / OfLane::lanes;
    const int tap = (at_.row * s.w + at_.column) * s.c + at_.slice * slice_channels + vector * 8;
    const unsigned needed = 1U << at_.row | 1U << (few_pixels_largest_window + at_.column);
    const OfLane windows = windows_[group];  // in whole vectors, and before the first copy
#pragma unroll
    for (int i = 0; i < OfLane::count; ++i) {
      const bool inside = (windows.of[i].outside & needed) == 0;
      cp_async_16_cached(to + slice_offset(group + i * OfLane::groups, vector),
                         p_.windows.x + (inside ? windows.of[i].first + tap : 0), inside);
    }
    at_.move(s, p_.step);
  }

 private:
  const FewPixels& p_;
  const BlockWindows<columns>& windows_;
  TapSlice at_;
};

/// Tiles of 8 columns.
constexpr int column_tiles(int columns) { return ceil_div(columns, 8); }

/// Multiplies a superblock by pixels in shared memory: multiply(chunk, x, first) a chunk, the first
/// or the second of the two that x holds. Columns past the last get the last one's pixels.
template <int columns, class Multiply>
__device__ __forceinline__ void multiply_windows(const unsigned char* pixels, Multiply multiply) {
  constexpr int tiles = column_tiles(columns);
  int position[tiles];
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int column = 8 * tile + static_cast<int>(threadIdx.x) % 32 / 4;
    position[tile] = column < columns ? column : columns - 1;
  }
  uint4 x[tiles];
  load_pixels<0>(pixels, position, x);
  multiply(0, x, true);
  multiply(1, x, false);
  load_pixels<1>(pixels, position, x);
  multiply(2, x, true);
  multiply(3, x, false);
}

/// A lane's steps. They wait in shared memory, because registers are short and few weights have
/// them.
__device__ __forceinline__ FragmentSteps steps_of_lane(const uint32_t (&of_row)[few_pixels_rows]) {
  FragmentSteps steps;
#pragma unroll
  for (int i = 0; i < 8; ++i) steps.of_row[i] = of_row[8 * i + threadIdx.x % 32 / 4];
  return steps;
}

/// Sums of a warp's superblocks: tile_column, tile_column + 8, … before `end`, of one row. The
/// first superblocks' codes are in `codes`, or in flight; the others come from `source`.
template <class Codes, int columns>
__device__ __forceinline__ void sum_superblocks(const FewPixels& p, int tile_column, int end,
                                                FewPixelsShared<Codes, columns>& memory, LaneSource<Codes>& source,
                                                FewPixelsCodes<Codes>& codes,
                                                FragmentSums<column_tiles(columns)>& sums) {
  const unsigned warp = threadIdx.x / 32;
  auto& ring = memory.operands.pixels[warp];
  WindowCopies<columns> copies(p, memory.windows, TapSlice(p.windows.sizes, tile_column));
  pdl_wait();  // the kernel before made x
#pragma unroll
  for (int stage = 0; stage < few_pixels_stages; ++stage) {
    if (tile_column + stage * few_pixels_warps < end) copies.start(ring[stage]);
    cp_async_commit();
  }
  while (tile_column < end) {
#pragma unroll
    for (int stage = 0; stage < few_pixels_stages; ++stage) {
      if (tile_column >= end) break;
      auto& own = codes[stage % few_pixels_depth<Codes>];
      if constexpr (are_strings<Codes>) own.store(memory.operands.strings[warp]);
      cp_async_wait<few_pixels_stages - 1>();
      __syncwarp();  // what the other lanes copied or stored is there
      multiply_windows<columns>(ring[stage], [&](int chunk, const uint4(&x)[column_tiles(columns)], bool first) {
        uint32_t a[4][4];
        if constexpr (are_strings<Codes>) {
          StringFragments<Codes::quarters>().unpack(memory.operands.strings[warp], chunk, a);
        } else {
          Codes{}.decode(own.words[chunk], memory.operands.table, a);
          if (p.weights.inside) apply_steps(steps_of_lane(memory.steps), a);
        }
        multiply_fragments(a, x, first, sums);
      });
      __syncwarp();  // all lanes are done reading these pixels
      if (tile_column + few_pixels_depth<Codes> * few_pixels_warps < end) source.load(own);
      if (tile_column + few_pixels_stages * few_pixels_warps < end) copies.start(ring[stage]);
      cp_async_commit();
      tile_column += few_pixels_warps;
    }
  }
  cp_async_wait<0>();
}

/// Position of a thread's results in a block's tile.
struct FewPixelsPlace {
  int column, row;
  __device__ FewPixelsPlace(int of_column, int of_row) : column(of_column), row(of_row) {}
  __device__ explicit FewPixelsPlace(int four)
      : column((four * few_pixels_threads + static_cast<int>(threadIdx.x)) / (few_pixels_rows / 4)),
        row(static_cast<int>(threadIdx.x) % (few_pixels_rows / 4) * 4) {}
};
/// Calls use(i, place) for each group of four rows that the thread has.
template <int columns, class Use>
__device__ __forceinline__ void for_each_four(Use use) {
#pragma unroll
  for (int i = 0; i < few_pixels_fours<columns>; ++i)
    if (const FewPixelsPlace place(i); place.column < columns) use(i, place);
}

__device__ __forceinline__ void add_to(float4& sum, const float4& other) {
  sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
}

/// A thread's sums over all warps, added in the order of the warps. All threads.
template <class Codes, int columns>
__device__ __forceinline__ void add_up_warps(FewPixelsShared<Codes, columns>& memory,
                                             FragmentSums<column_tiles(columns)>& sums,
                                             float4 (&total)[few_pixels_fours<columns>]) {
  __syncthreads();  // all threads are done reading the operands
  for_each_sum(sums, [&](int row) {
    auto& of_warp = memory.sums[threadIdx.x / 32];
    return [&of_warp, row](int tile, int e, float sum) {
      if (const int column = column_of_sum(tile, e); column < columns) of_warp[column][row] = sum;
    };
  });
  __syncthreads();
  for_each_four<columns>([&](int i, const FewPixelsPlace& place) {
    total[i] = {};
#pragma unroll
    for (const auto& of_warp : memory.sums)
      add_to(total[i], *reinterpret_cast<const float4*>(&of_warp[place.column][place.row]));
  });
}

/// Split-K reduction: stores a thread's sums of this split. The last block to arrive adds the sums
/// of all splits in their order; only there it returns true. All threads.
template <int columns>
__device__ __forceinline__ bool add_up_splits(const FewPixels& p, int split,
                                              float4 (&total)[few_pixels_fours<columns>]) {
  constexpr int fours = few_pixels_fours<columns>;
  const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const auto sums_of = [&](int of_split) {
    return reinterpret_cast<float4*>(p.partial) + (of_split * blocks + block) * fours * few_pixels_threads +
           threadIdx.x;
  };
  for_each_four<columns>([&](int i, const FewPixelsPlace&) { sums_of(split)[i * few_pixels_threads] = total[i]; });
  if (!arrives_last(p.semaphores[block], p.splits)) return false;
#pragma unroll
  for (float4& sum : total) sum = {};
#pragma unroll 4
  for (int of_split = 0; of_split < p.splits; ++of_split)
    for_each_four<columns>(
        [&](int i, const FewPixelsPlace&) { add_to(total[i], __ldcg(sums_of(of_split) + i * few_pixels_threads)); });
  return true;
}

/// Results of four neighbouring rows of a column, from their epilogues.
struct FourResults {
  float value[4];

  __device__ FourResults(const BiasEpilogue<AnyElements>::Row* finish, const float4& sum)
      : value{finish[0](sum.x), finish[1](sum.y), finish[2](sum.z), finish[3](sum.w)} {}
  __device__ uint2 fp16() const { return {pair_of_fp16(value[0], value[1]), pair_of_fp16(value[2], value[3])}; }
};

/// Stores four neighbouring rows of a pixel of y.
__device__ __forceinline__ void store_four(const FewPixels& p, int row, int pixel, const FourResults& results) {
  if (pixel >= p.epilogue.columns) return;
  const int64_t first = static_cast<int64_t>(pixel) * p.epilogue.rows + row;
  if (p.by_fours) {
    if (row < p.epilogue.rows) *reinterpret_cast<uint2*>(static_cast<f16*>(p.epilogue.y.data) + first) = results.fp16();
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (row + e < p.epilogue.rows) store_element(p.epilogue.y, first + e, results.value[e]);
}

/// Stores four channels of a pooled result: window (row, column) of an image.
__device__ __forceinline__ void store_pooled(const FewPixels& p, int image, int row, int column, int channel,
                                             const uint2& four) {
  const MaxPooling& pool = p.tiles.pool;
  const int channels = p.epilogue.rows;
  f16* y = static_cast<f16*>(p.epilogue.y.data);
  const int64_t first_pixel = static_cast<int64_t>(image) * pool.p * pool.q;
  const int pixel = row * pool.q + column;
  if (!p.flat) {
    *reinterpret_cast<uint2*>(y + (first_pixel + pixel) * channels + channel) = four;
    return;
  }
  y += first_pixel * channels + static_cast<int64_t>(channel) * pool.p * pool.q + pixel;
#pragma unroll
  for (int e = 0; e < 4; ++e)
    y[e * pool.p * pool.q].bits = static_cast<uint16_t>((e < 2 ? four.x : four.y) >> e % 2 * 16);
}

/// Pools rows [4 first_four, 4 (first_four + fours)) of a tile's results. `results` holds four rows
/// of a column in 16 bytes, as fp16 values in the first eight. All threads.
template <int columns>
__device__ __forceinline__ void pool_tile(const FewPixels& p, const float (&results)[columns][few_pixels_rows + 4],
                                          int first_four, int fours) {
  const MaxPooling& pool = p.tiles.pool;
  const PooledTile tile(p.tiles, static_cast<int>(blockIdx.x));
  for (int i = static_cast<int>(threadIdx.x); i < p.tiles.p * p.tiles.q * fours; i += few_pixels_threads) {
    const int window = i / fours;
    const int row = window / p.tiles.q;
    const int column = window - row * p.tiles.q;
    const int of_block = (first_four + i - window * fours) * 4;
    const int channel = static_cast<int>(blockIdx.y) * few_pixels_rows + of_block;
    if (tile.row + row >= pool.p || tile.column + column >= pool.q || channel >= p.epilogue.rows) continue;
    const int first = row * pool.stride * p.tiles.width() + column * pool.stride;
    const auto at = [&](int r, int c) {
      return *reinterpret_cast<const uint2*>(&results[first + r * p.tiles.width() + c][of_block]);
    };
    uint2 largest = at(0, 0);
    for (int r = 0; r < pool.size; ++r)
#pragma unroll 3
      for (int c = 0; c < pool.size; ++c) {
        const uint2 other = at(r, c);
        largest = {max_fp16x2(largest.x, other.x), max_fp16x2(largest.y, other.y)};
      }
    store_pooled(p, tile.image, tile.row + row, tile.column + column, channel, largest);
  }
}

/// Stores the results of four rows of a column. With pooling they go to `results`, behind which a
/// barrier and pool_tile() follow.
template <bool pools, int columns>
__device__ __forceinline__ void finish_four(const FewPixels& p, const BiasEpilogue<AnyElements>::Row* rows,
                                            const FewPixelsPlace& place, const float4& sum,
                                            float (&results)[columns][few_pixels_rows + 4]) {
  const FourResults four(rows + place.row, sum);
  if constexpr (pools)
    *reinterpret_cast<uint2*>(&results[place.column][place.row]) = four.fp16();
  else
    store_four(p, static_cast<int>(blockIdx.y) * few_pixels_rows + place.row,
               static_cast<int>(blockIdx.x) * columns + place.column, four);
}

/// Split-K reduction in a cluster: each block finishes its share of the rows, from the sums of all
/// splits in their order, which it reads out of the other blocks' shared memory. The sums have the
/// bits of add_up_splits(). All threads.
template <bool pools, class Codes, int columns>
__device__ __forceinline__ void finish_in_cluster(const FewPixels& p, FewPixelsShared<Codes, columns>& memory,
                                                  const float4 (&total)[few_pixels_fours<columns>]) {
  auto& own = memory.sums[0];  // a thread alone has read the sums there that it replaces
  for_each_four<columns>([&](int i, const FewPixelsPlace& place) {
    *reinterpret_cast<float4*>(&own[place.column][place.row]) = total[i];
  });
  meet_in_cluster();
  const auto rank = static_cast<int>(cluster_rank());
  const int first_four = few_pixels_rows / 4 * rank / p.splits;
  const int fours = few_pixels_rows / 4 * (rank + 1) / p.splits - first_four;
  for (int i = static_cast<int>(threadIdx.x); i < columns * fours; i += few_pixels_threads) {
    const int column = i / fours;
    const FewPixelsPlace place(column, (first_four + i - column * fours) * 4);
    const auto* sums = reinterpret_cast<const float4*>(&own[place.column][place.row]);
    float4 of_split[few_pixels_largest_cluster] = {};  // all are loaded before the first is added
#pragma unroll
    for (int split = 0; split < few_pixels_largest_cluster; ++split)
      if (split < p.splits) of_split[split] = load_cluster_16(sums, static_cast<unsigned>(split));
    float4 sum = {};
#pragma unroll
    for (int split = 0; split < few_pixels_largest_cluster; ++split)
      if (split < p.splits) add_to(sum, of_split[split]);
    finish_four<pools>(p, memory.rows, place, sum, memory.sums[1]);
  }
  cluster_arrive_relaxed();  // results are stored, so all that they need of other blocks has been read
  if constexpr (pools) {
    __syncthreads();
    pool_tile<columns>(p, memory.sums[1], first_four, fours);
  }
  cluster_wait();  // until then the others may read this block's sums
}

/// Convolution of few pixels: y = epilogue(x * w + bias), `pools`: with max pooling. 256 threads.
/// Block (x, y, z) owns the x-th 32 pixels of the batch, or tile x of results that are pooled; rows
/// [64 y, 64 y + 64); and split z of the superblocks along k. Each warp multiplies every eighth of
/// these superblocks by all pixels of the block, into sums of its own. Warps' sums are added
/// through shared memory, splits through that of a cluster or through device memory, always in the
/// same order.
template <class Codes, bool pools>
__global__ void __maxnreg__((few_pixels_registers<Codes, pools>)) few_pixels_kernel(FewPixels p) {
  constexpr int columns = columns_of<Codes, pools>;
  auto& memory = *reinterpret_cast<FewPixelsShared<Codes, columns>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x);
  const int tile_row = static_cast<int>(blockIdx.y);
  const int split = static_cast<int>(blockIdx.z);
  const auto superblocks = static_cast<int>(p.weights.layout.tile_columns());
  const int tile_column = superblocks * split / p.splits + thread / 32;
  const int end = superblocks * (split + 1) / p.splits;

  pdl_trigger();
  if (p.weights_from_before) pdl_wait();
  LaneSource<Codes> source(p.weights, tile_row, tile_column);
  FewPixelsCodes<Codes> codes = {};
#pragma unroll
  for (int stage = 0; stage < few_pixels_depth<Codes>; ++stage)
    if (tile_column + stage * few_pixels_warps < end) source.load(codes[stage]);
  p.weights.prepare<Codes>(memory.operands.table);
  if (thread < columns)
    memory.windows[thread % LaneWindows<columns>::groups].of[thread / LaneWindows<columns>::groups] =
        window_of_column<pools, columns>(p, block, thread);
  if (thread >= few_pixels_threads - few_pixels_rows) {
    const int of_block = thread - (few_pixels_threads - few_pixels_rows);
    const int row = tile_row * few_pixels_rows + of_block;
    memory.rows[of_block] = p.epilogue.of_row(row < p.epilogue.rows ? row : 0);
    if constexpr (!are_strings<Codes>)
      if (p.weights.inside)
        memory.steps[of_block] = packed_steps<Codes>(p.weights, p.weights.steps.first_group(p.weights.rows, row));
  }
  __syncthreads();

  FragmentSums<column_tiles(columns)> sums = {};
  sum_superblocks<Codes>(p, tile_column, end, memory, source, codes, sums);
  float4 total[few_pixels_fours<columns>];
  add_up_warps(memory, sums, total);
  if (compiled_for_90() && p.clustered) return finish_in_cluster<pools>(p, memory, total);
  if (p.splits > 1 && !add_up_splits<columns>(p, split, total)) return;
  for_each_four<columns>([&](int i, const FewPixelsPlace& place) {
    // With pooling, results replace sums that this thread alone has read.
    finish_four<pools>(p, memory.rows, place, total[i], memory.sums[0]);
  });
  if constexpr (pools) {
    __syncthreads();
    pool_tile<columns>(p, memory.sums[0], 0, few_pixels_rows / 4);
  }
}

}  // namespace nibblenet
