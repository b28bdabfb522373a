#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cuda/weights/readers.cuh"
#include "kernels/cuda/weights/unpack.cuh"
#include "kernels/cuda/weights/weight_cuda.h"

namespace nibblenet {

/// Scales of a matrix in superblocks. Inside a superblock, all weights of a row share one scale.
struct SuperblockSteps {
  GroupSteps steps;
  const uint8_t* zero_points = nullptr;  ///< null: symmetric
  int rows_of_group = 1;                 ///< how many rows share one
  int groups_per_row = 0;                ///< of a row
  int run = 0;                           ///< columns, a multiple of 64; 0: whole rows
  /// Whether scales are applied inside the k loop, not in the epilogue: a row has several, or
  /// several rows share one.
  bool differ = false;

  explicit SuperblockSteps(const WeightCuda& w)
      : steps{w.view().scales, w.view().scale_type, w.view().scale_to},
        zero_points(w.view().zero_points),
        run(static_cast<int>(w.traits().scale_run)) {
    const GroupMap& map = w.view().groups;
    const bool tiles = map.kind == Granularity::Kind::tile;
    differ = run != 0 || tiles;
    if (tiles) rows_of_group = static_cast<int>(std::min<int64_t>(map.block, std::numeric_limits<int>::max()));
    if (map.groups > 1)
      groups_per_row = static_cast<int>(tiles                                    ? map.tiles_across
                                        : map.kind == Granularity::Kind::channel ? 1
                                                                                 : map.groups_per_channel);
  }
  SuperblockSteps() = default;

  /// Whether scales, or zero points, are applied per superblock.
  bool inside() const { return differ || zero_points != nullptr; }
  /// Distance of the groups of superblock `tile_column` of a row from those of its first
  /// superblock.
  __device__ int groups_before(int tile_column) const { return run == 0 ? 0 : tile_column * Superblocks::size / run; }
  /// Group of a row's first superblock. Rows past the end, `rows`, get the last row's.
  __device__ int first_group(int rows, int row) const {
    return (row < rows ? row : rows - 1) / rows_of_group * groups_per_row;
  }
};

/// Groups of a lane's rows of a superblock row, two per fragment, at the first column.
struct RowGroups {
  int first[8];

  __device__ RowGroups(const SuperblockSteps& steps, int rows, int tile_row) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      first[i] = steps.first_group(rows, tile_row * Superblocks::size + 8 * i + static_cast<int>(threadIdx.x) % 32 / 4);
  }
};

/// Superblocks with the scales and values that turn them into fp16 values.
struct SuperblockWeights {
  Superblocks layout;
  StringBlocks strings = {};  ///< layout of trellis strings in their place
  const uint8_t* codes = nullptr;
  CodeValues fixed = {};  ///< values by code, used where `stored` is null
  const float* stored = nullptr;
  float value_factor = 1.0F;  ///< power of two, for values in fp16
  SuperblockSteps steps = {};
  bool inside = false;       ///< steps.inside()
  float step_factor = 1.0F;  ///< what steps that differ are multiplied by, for fp16 values
  int rows = 0;

  /// Fills the look-up table. All threads; the caller's next barrier makes it visible.
  template <class Codes>
  __device__ void prepare(typename Codes::Table& table) const {
    Codes{}.prepare(table, fixed, stored, value_factor);
  }
};

/// Power of two that the values of codes, or fp16 values in memory, are multiplied by.
inline float factor_of_values(const WeightCuda& w) {
  if (w.form() == WeightForm::float16) return w.normalisation();
  if (w.layout() == WeightLayout::strings) return 1.0F;
  return w.traits().integers ? 1.0F : w.value_normalisation();
}

/// Calls f.template operator()<bits>() with the width of codes as a constant.
template <int least = 2, class F>
void with_bits(int bits, F f) {
  if constexpr (least > 8)
    fail<Error>("no product for codes of {} bits", bits);
  else if (bits == least)
    f.template operator()<least>();
  else
    with_bits<least + 1>(bits, f);
}

/// Calls f.template operator()<Codes>() with the type that unpacks the superblocks of `w`.
template <class F>
void with_codes(const WeightCuda& w, F f) {
  if (w.form() == WeightForm::float16) return f.template operator()<HalfCodes>();
  with_bits(w.view().bits, [&]<int bits>() {
    if (w.traits().integers)
      f.template operator()<IntegerCodes<bits>>();
    else
      f.template operator()<CodebookCodes<bits>>();
  });
}

}  // namespace nibblenet
