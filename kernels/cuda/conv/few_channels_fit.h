#pragma once

#include <optional>

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/product_case.h"

// Fit and tiling of the few-channels kernels: the convolution (conv/few_channels.cuh) and its
// weight gradient (conv/few_channels_gradient.cuh), with their shared-memory layouts.

namespace nibblenet {

inline constexpr int few_channels_most_pairs = 256;      ///< of a filter
inline constexpr int few_channels_k_tile_pairs = 8;      ///< one m16n8k16
inline constexpr int few_channels_fragment_bytes = 512;  ///< of 16 filters in a k-tile
inline constexpr int few_channels_warps = 4;
/// Blocks that run at once on the nominal GPU: two per multiprocessor.
inline constexpr int few_channels_most_blocks = 2 * static_cast<int>(nominal_multiprocessors);

/// A block's output pixels and their input. A band is `rows` x `columns` pixels of an image, in
/// tiles of eight neighbours. A block walks down `walk` bands of an image, then starts another
/// walk.
struct OutputBands {
  ConvolutionSizes sizes = {};
  int filters = 0;  ///< of a block: 16 a fragment
  int rows = 0, columns = 0;
  int walk = 1;
  int walk_rows = 0;             ///< from the first row of a walk to that of the next one
  int walks_h = 0, walks_w = 0;  ///< walks of an image
  int tiles_per_row = 0;         ///< of a band's row
  int height = 0;                ///< rows of input
  int vectors = 0;               ///< 16-byte vectors that a row of input takes
  int pitch = 0;                 ///< words from one row to the next one
  int words = 0;                 ///< of a run
  int k_tiles = 0;               ///< along k
  int pooled_p = 0;              ///< rows of y where results are pooled; 0: they are not
  int pooled_q = 0;              ///< and columns
  bool aligned = false;          ///< rows of x begin at 16 bytes, windows at words of them
  int code_stride = 0;           ///< bytes of a filter's codes, copied first; 0: weights are read from memory

  constexpr int walks() const { return sizes.n * walks_h * walks_w; }
  constexpr int tiles() const { return rows * tiles_per_row; }
  constexpr int run() const { return sizes.size * sizes.c; }  ///< fp16 values
  constexpr int pairs() const { return sizes.size * words; }
  constexpr int k_tile_bytes() const { return filters / 16 * few_channels_fragment_bytes; }

  /// A band: the number of its walk, and its position in the walk.
  struct Place {
    int walk, band;
  };
  /// The first output pixel of a band.
  struct Band {
    int image, row, column;
  };
  /// First output pixel of the band at `place`.
  constexpr Band band(Place place) const {
    const int strip = place.walk / walks_w;
    const int image = strip / walks_h;
    return {image, (strip - image * walks_h) * walk_rows + place.band * rows, (place.walk - strip * walks_w) * columns};
  }
  /// Index in an image row where the windows of a band begin; negative in the padding.
  constexpr int first_element(const Band& at) const { return (at.column * sizes.stride - sizes.padding) * sizes.c; }
  /// Index where the copy of the row begins: at or before first_element(), 16-byte aligned if the
  /// rows are.
  constexpr int first_copied(const Band& at) const { return first_element(at) & (aligned ? ~7 : ~0); }

  // Byte offsets in a block's dynamic shared memory: filters, input, then the tables below.
  constexpr int input_at() const { return k_tiles * k_tile_bytes(); }
  constexpr int pairs_at() const { return input_at() + height * pitch * 4; }
  constexpr int finish_at() const { return pairs_at() + k_tiles * 4 * 8; }
  /// Used until the filters are loaded, as are the codes; the pooling buffer then reuses this
  /// memory.
  constexpr int places_at() const { return finish_at() + filters * 8; }
  constexpr int codes_at() const { return (places_at() + places_bytes() + 15) / 16 * 16; }
  static constexpr int places_bytes() { return 2 * 2 * few_channels_most_pairs; }
  constexpr int result_row() const { return pooled_q * filters * 2; }
  constexpr int shared_bytes() const {
    const int codes = codes_at() + filters * code_stride, results = places_at() + (rows + 1) * result_row();
    return codes > results ? codes : results;
  }
};

/// Runs of the weight gradient in shared memory: for each output column, size x C neighbouring fp16
/// values.
struct FewChannelsRuns {
  ConvolutionSizes sizes;  ///< C, stride and padding such that runs begin at whole words

  static constexpr int filters = 64;  ///< of dy, a block's
  static constexpr int depth = 32;    ///< of k, a multiple of which output columns are padded to

  constexpr int run() const { return sizes.size * sizes.c; }
  constexpr int tiles_of_run() const { return (run() + 7) / 8; }
  constexpr int tiles() const { return sizes.size * tiles_of_run(); }
  /// Stride between runs, an odd number of 16-byte vectors: the runs of eight neighbouring columns
  /// lie in different banks.
  constexpr int run_bytes() const { return (tiles_of_run() | 1) * 16; }
  /// Output columns, padded to a multiple of a k-tile.
  constexpr int columns() const { return (sizes.q + depth - 1) / depth * depth; }
  constexpr int row_bytes() const { return columns() * run_bytes(); }
  /// Image rows in shared memory: those that one output row reads, and the next row's new ones.
  constexpr int slots() const { return sizes.size + sizes.stride; }
  constexpr int dy_bytes() const { return columns() * filters * 2; }
  /// Computed in 64 bits: rows may be too long for shared memory and for the integers above.
  constexpr int64_t shared_bytes() const {
    return (int64_t{slots()} * run_bytes() + int64_t{2} * filters * 2) * columns();
  }
};
/// Tiles of eight columns of dw (device order, inside one run) that a warp owns, at most.
inline constexpr int few_channels_tiles = 7;
inline constexpr int few_channels_gradient_warps = 8;

namespace few_channels {

/// A kernel's template arguments, and its tiling.
struct Plan {
  OutputBands bands;
  int tiles;      ///< of a warp
  int fragments;  ///< of 16 filters
};
/// Returns nothing where the kernel cannot compute the product, or its fused pooling.
std::optional<Plan> plan_of(const ProductCase& c);
inline int filter_blocks(const OutputBands& b) { return ceil_div(b.sizes.k, b.filters); }

/// Requires fp16 activations, weights in channel layout, windows that begin at 4-byte words of x,
/// and short filters. With max pooling: 3 x 3 at stride 2 without padding, and rows of 29 to 56
/// results.
inline bool fits(const ProductCase& c) { return plan_of(c).has_value(); }
/// Requires fp16 activations, K a multiple of 8, 16-byte aligned dy, overlapping windows, and
/// windows and image rows that begin at 4-byte words. An output row and all that it reads must fit
/// into shared memory.
bool fits_weight_gradient(const ProductCase& c);

}  // namespace few_channels
}  // namespace nibblenet
