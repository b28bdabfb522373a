#pragma once

#include <optional>

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/product_case.h"
#include "kernels/cuda/weights/superblock.h"

// Fit of the mma kernels (gemm/mma.cuh, gemm/mma_gradient.cuh), and the tiling of the former.

namespace nibblenet {

inline constexpr int mma_row_warps = 2;  ///< warps per column of pixels, each with superblock rows of its own
inline constexpr int mma_rows = mma_row_warps * Superblocks::size;
inline constexpr int mma_warp_tiles = 4;  ///< tiles of 8 output pixels per warp
inline constexpr int mma_warp_columns = 8 * mma_warp_tiles;
inline constexpr int mma_stages = 3;       ///< of the ring: one superblock is multiplied, the others are in flight
inline constexpr int slice_channels = 64;  ///< of a slice of x
inline constexpr int slice_bytes = 128;    ///< of a pixel of it

/// Most pairs of warps side by side in a block. Fewer, with more registers each, where a code takes
/// two look-ups.
constexpr int mma_most_column_warps(int bits, bool integers) { return integers || bits <= 4 || bits == 16 ? 6 : 4; }
/// Bytes of the look-up table of a codebook in shared memory (weights/unpack.cuh).
constexpr int code_table_bytes(int bits, bool integers) {
  if (integers || bits == 16) return 0;
  return bits == 2 ? 16 : (bits <= 4 ? 1 << 2 * bits : 1 << bits) * 32 * 4;
}

/// Fused max pooling of a block's results.
struct MaxPooling {
  int size = 0;  ///< of the window; 0: none
  int stride = 1;
  int p = 0, q = 0;  ///< of y
  int rows = 0;      ///< of y that a block has
};
/// Pooling of a product; MaxPooling::rows is still to be set.
MaxPooling max_pooling(const ProductCase& c);

/// A block's columns (output pixels) and their input. A linear layer is a convolution of images of
/// one pixel.
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

  /// Coordinates of a column inside its block.
  struct Column {
    int image, row, q;
  };
  /// Coordinates of column i.
  constexpr Column column(int i) const {
    const int across = i / sizes.q;
    return {across / rows, across % rows, i - across * sizes.q};
  }
  /// Input position of a column's first tap. Columns that do not exist get a valid position.
  constexpr int position(int i) const {
    if (i >= columns()) return 0;
    const Column c = column(i);
    return (c.image * height + c.row * sizes.stride) * width + c.q * sizes.stride;
  }
  /// Output pixel of column i of a block; -1 where there is none.
  constexpr int pixel(int block, int i) const {
    if (i >= columns()) return -1;
    const Column c = column(i);
    const int image = block / bands * images + c.image;
    const int row = block % bands * row_step + c.row;
    return image < sizes.n && row < sizes.p ? (image * sizes.p + row) * sizes.q + c.q : -1;
  }
};

/// Layout of a block's dynamic shared memory: the look-up table, the ring of superblocks, the
/// slices of x. The results reuse it afterwards, column by column. Padding at a column's end
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
  /// Bytes in all.
  constexpr int bytes(const PixelBlocks& b) const {
    const int results = ceil_div(b.columns(), mma_warp_columns) * mma_warp_columns * column * 2;
    const int operands = slices_at + b.slots * b.positions() * slice_bytes;
    return results > operands ? results : operands;
  }
};

namespace mma {

/// The largest blocks that fit: several images, one image, or a band of its rows. Returns nothing
/// where not even one row fits.
std::optional<PixelBlocks> blocks_of(const ProductCase& c);

/// Requires fp16 activations, and weights in superblocks, or in string blocks, that line up with
/// slices of 64 channels; x and y 16-byte aligned. Max pooling: fp16 results, windows without
/// padding.
bool fits(const ProductCase& c);
/// Requires fp16 activations, C and K multiples of 8, 16-byte aligned dx and dy, and weights that
/// train.
bool fits_data_gradient(const ProductCase& c);
/// Requires fp16 activations, K a multiple of 8, and 16-byte aligned dy.
bool fits_weight_gradient(const ProductCase& c);

}  // namespace mma
}  // namespace nibblenet
