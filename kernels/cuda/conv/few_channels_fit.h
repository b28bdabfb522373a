#pragma once

#include <optional>

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/product_case.h"

// What conv/few_channels.cuh and conv/few_channels_gradient.cuh can compute, how the former cuts
// its work, and how large their operands are in shared memory.

namespace nibblenet {

inline constexpr int few_channels_most_pairs = 256;      ///< of a filter
inline constexpr int few_channels_k_tile_pairs = 8;      ///< one m16n8k16
inline constexpr int few_channels_fragment_bytes = 512;  ///< of 16 filters in a k-tile
inline constexpr int few_channels_warps = 4;
/// Blocks that the nominal GPU runs at once, nearly: two on each of its multiprocessors.
inline constexpr int few_channels_most_blocks = 2 * static_cast<int>(nominal_multiprocessors);

/// The output pixels of a block: `rows` x `columns` of an image, in tiles of eight neighbours, and
/// their input. A block walks down `walk` bands of an image, and then begins anew elsewhere.
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

  constexpr int walks() const { return sizes.n * walks_h * walks_w; }
  constexpr int tiles() const { return rows * tiles_per_row; }
  constexpr int run() const { return sizes.size * sizes.c; }  ///< fp16 values
  constexpr int pairs() const { return sizes.size * words; }
  constexpr int k_tile_bytes() const { return filters / 16 * few_channels_fragment_bytes; }

  /// A walk, and the band that it has come to.
  struct Place {
    int walk, band;
  };
  /// Where a band's first output pixel lies.
  struct Band {
    int image, row, column;
  };
  /// The band at a place.
  constexpr Band band(Place place) const {
    const int strip = place.walk / walks_w;
    const int image = strip / walks_h;
    return {image, (strip - image * walks_h) * walk_rows + place.band * rows, (place.walk - strip * walks_w) * columns};
  }
  /// Element of an image's row that a band's windows begin with; negative in the padding.
  constexpr int first_element(const Band& at) const { return (at.column * sizes.stride - sizes.padding) * sizes.c; }
  /// The element before it that a copy begins with.
  constexpr int first_copied(const Band& at) const { return first_element(at) & (aligned ? ~7 : ~0); }

  // Where operands lie in a block's dynamic shared memory, in bytes: filters, then input, then
  // these.
  constexpr int input_at() const { return k_tiles * k_tile_bytes(); }
  constexpr int pairs_at() const { return input_at() + height * pitch * 4; }
  constexpr int finish_at() const { return pairs_at() + k_tiles * 4 * 8; }
  /// Needed until the filters are there; results to be pooled take the same memory afterwards.
  constexpr int places_at() const { return finish_at() + filters * 8; }
  constexpr int result_row() const { return pooled_q * filters * 2; }
  constexpr int shared_bytes() const {
    const int places = 2 * 2 * few_channels_most_pairs, results = (rows + 1) * result_row();
    return places_at() + (places > results ? places : results);
  }
};

/// The runs of the weight gradient in shared memory: of each output column `size` x C neighbouring
/// fp16 values.
struct FewChannelsRuns {
  ConvolutionSizes sizes;  ///< C, stride and padding such that runs begin at whole words

  static constexpr int filters = 64;  ///< of dy, a block's
  static constexpr int depth = 32;    ///< of k, a multiple of which output columns are padded to

  constexpr int run() const { return sizes.size * sizes.c; }
  constexpr int tiles_of_run() const { return (run() + 7) / 8; }
  constexpr int tiles() const { return sizes.size * tiles_of_run(); }
  /// An odd number of 16-byte vectors: eight neighbouring columns' lie in eight groups of banks.
  constexpr int run_bytes() const { return (tiles_of_run() | 1) * 16; }
  /// Output columns, with those that pad a product's k-tile.
  constexpr int columns() const { return (sizes.q + depth - 1) / depth * depth; }
  constexpr int row_bytes() const { return columns() * run_bytes(); }
  /// Rows of the image in shared memory: those that one output row meets, and what is new of the
  /// next one's.
  constexpr int slots() const { return sizes.size + sizes.stride; }
  constexpr int dy_bytes() const { return columns() * filters * 2; }
  /// Of rows that may be too long for shared memory, and for the integers above.
  constexpr int64_t shared_bytes() const {
    return (int64_t{slots()} * run_bytes() + int64_t{2} * filters * 2) * columns();
  }
};
/// Eight columns of dw in device order that lie in one run: what a warp has of these at most.
inline constexpr int few_channels_tiles = 7;
inline constexpr int few_channels_gradient_warps = 8;

namespace few_channels {

/// The kernel that is started, by what it is compiled for, and how its output is cut.
struct Plan {
  OutputBands bands;
  int tiles;      ///< of a warp
  int fragments;  ///< of 16 filters
};
/// Nothing where the kernel cannot compute it, with its pooling if it has one.
std::optional<Plan> plan_of(const ProductCase& c);
inline int filter_blocks(const OutputBands& b) { return ceil_div(b.sizes.k, b.filters); }

/// Fp16 activations, weights channel by channel, windows that begin at whole words of x, short
/// filters. Max pooling of 3 x 3 at stride 2 without padding, for rows of 29 to 56 results.
inline bool fits(const ProductCase& c) { return plan_of(c).has_value(); }
/// Fp16 activations, K a multiple of 8, dy on 16 bytes; windows and images' rows begin at whole
/// words, windows overlap, and an output row with all that it meets fits into shared memory.
bool fits_weight_gradient(const ProductCase& c);

}  // namespace few_channels
}  // namespace nibblenet
