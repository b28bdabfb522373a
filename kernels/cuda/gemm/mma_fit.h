#pragma once

#include <optional>

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/product_case.h"
#include "kernels/cuda/weights/superblock.h"

// What gemm/mma.cuh and gemm/mma_gradient.cuh can compute, and how the former cuts a product.

namespace nibblenet {

inline constexpr int mma_row_warps = 2;  ///< warps below each other, each on superblocks of its own rows
inline constexpr int mma_rows = mma_row_warps * Superblocks::size;
inline constexpr int mma_warp_tiles = 4;  ///< 8 output pixels each, that a warp multiplies its superblock by
inline constexpr int mma_warp_columns = 8 * mma_warp_tiles;
inline constexpr int mma_stages = 3;       ///< of the ring: one superblock is multiplied, the others are on their way
inline constexpr int slice_channels = 64;  ///< of a slice of x
inline constexpr int slice_bytes = 128;    ///< of a pixel of it

/// Warps of a block next to each other at most; fewer, with more registers each, where a code takes
/// two look-ups.
constexpr int mma_most_column_warps(int bits, bool integers) { return integers || bits <= 4 || bits == 16 ? 6 : 4; }
/// Shared memory of the table that codes of a codebook are looked up in (weights/unpack.cuh).
constexpr int code_table_bytes(int bits, bool integers) {
  if (integers || bits == 16) return 0;
  return bits == 2 ? 16 : (bits <= 4 ? 1 << 2 * bits : 1 << bits) * 32 * 4;
}

/// Max pooling of a block's results before they are written.
struct MaxPooling {
  int size = 0;  ///< of the window; 0: none
  int stride = 1;
  int p = 0, q = 0;  ///< of y
  int rows = 0;      ///< of y that a block has
};
/// That of a product; how many rows a block has is still to be said.
MaxPooling max_pooling(const ProductCase& c);

/// The output pixels of a block, its columns, and the input that they need. A linear layer is a
/// convolution of images of one pixel.
struct PixelBlocks {
  ConvolutionSizes sizes = {};
  int images = 0;    ///< of a block
  int rows = 0;      ///< output rows of each of them
  int row_step = 0;  ///< from one block's rows to the next one's
  int bands = 0;     ///< blocks that cover an image's rows
  int height = 0;    ///< of the piece of an image that these rows need
  int width = 0;
  int slots = 0;            ///< slices in shared memory
  MaxPooling pooling = {};  ///< of the results

  constexpr int columns() const { return images * rows * sizes.q; }
  constexpr int positions() const { return images * height * width; }
  constexpr int slices() const { return (sizes.c + slice_channels - 1) / slice_channels; }

  /// What a column of a block is, counted inside the block.
  struct Column {
    int image, row, q;
  };
  /// The i-th one.
  constexpr Column column(int i) const {
    const int across = i / sizes.q;
    return {across / rows, across % rows, i - across * sizes.q};
  }
  /// Where the first tap of a column finds its pixel. Columns that do not exist get any place.
  constexpr int position(int i) const {
    if (i >= columns()) return 0;
    const Column c = column(i);
    return (c.image * height + c.row * sizes.stride) * width + c.q * sizes.stride;
  }
  /// Output pixel of a column of a block; -1: none.
  constexpr int pixel(int block, int i) const {
    if (i >= columns()) return -1;
    const Column c = column(i);
    const int image = block / bands * images + c.image;
    const int row = block % bands * row_step + c.row;
    return image < sizes.n && row < sizes.p ? (image * sizes.p + row) * sizes.q + c.q : -1;
  }
};

/// Dynamic shared memory of a block: the look-up table, the ring of superblocks, the slices of x;
/// and when these have been multiplied the results, column by column. The odd end of a column
/// spreads rows over the banks.
struct MmaShared {
  int superblocks;  ///< bytes of a stage
  int ring_at;
  int slices_at;
  static constexpr int column = mma_rows + 8;  ///< fp16 values

  constexpr MmaShared(int bits, bool integers)
      : superblocks(mma_row_warps * bits * Superblocks::row_bytes),
        ring_at(code_table_bytes(bits, integers)),
        slices_at(ring_at + mma_stages * superblocks) {}
  /// All of it.
  constexpr int bytes(const PixelBlocks& b) const {
    const int results = ceil_div(b.columns(), mma_warp_columns) * mma_warp_columns * column * 2;
    const int operands = slices_at + b.slots * b.positions() * slice_bytes;
    return results > operands ? results : operands;
  }
};

namespace mma {

/// The largest blocks that fit: of several images, one, or a band of its rows. Nothing where not
/// even a row does.
std::optional<PixelBlocks> blocks_of(const ProductCase& c);

/// Fp16 activations and weights in superblocks that line up with slices of 64 channels, all on 16
/// bytes; max pooling of fp16 results in windows without padding.
bool fits(const ProductCase& c);
/// Fp16 activations, C and K multiples of 8, dx and dy on 16 bytes; weights that train.
bool fits_data_gradient(const ProductCase& c);
/// Fp16 activations, K a multiple of 8, dy on 16 bytes.
bool fits_weight_gradient(const ProductCase& c);

}  // namespace mma
}  // namespace nibblenet
