#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

/// Blocks of a product: of pixels, of rows, and splits of the superblocks along k.
struct MmaBlocks {
  int across;  ///< pairs of warps side by side
  int64_t columns, rows;
  int splits;
  size_t partial_floats;

  MmaBlocks(const PixelBlocks& pixels, const Superblocks& weights)
      : across(ceil_div(pixels.columns(), mma_warp_columns)),
        columns(int64_t{ceil_div(pixels.sizes.n, pixels.images)} * pixels.bands),
        rows(ceil_div(weights.tile_rows(), int64_t{mma_row_warps})),
        // Each split has at least four superblocks.
        splits(split_k::mma.splits(columns * rows * mma_row_warps * across,
                                   int64_t{pixels.slices()} * pixels.sizes.taps() / 4)),
        partial_floats(
            splits == 1 ? 0 : static_cast<size_t>(splits * columns * rows * across * mma_warp_columns * mma_rows)) {}
};

template <class Codes>
void start(const MmaProduct& p, const MmaBlocks& blocks, const Work& work, Stream& stream) {
  const Grid grid{dim3(static_cast<unsigned>(blocks.columns), static_cast<unsigned>(blocks.rows),
                       static_cast<unsigned>(blocks.splits)),
                  static_cast<unsigned>(32 * mma_row_warps * blocks.across),
                  static_cast<size_t>(MmaMemory<Codes>::layout.bytes(p.pixels)), true};
  launch("mma_product", work, grid, stream, mma_kernel<Codes>, p);
}

}  // namespace

namespace cuda {

void mma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(mma::fits(f.shape), "mma", f.shape);
  const ConvolutionSizes& s = f.shape.sizes;
  MmaProduct p{.weights = superblock_operand(f.w), .x = f.x.fp16().data(), .pixels = *mma::blocks_of(f.shape)};
  const MmaBlocks blocks(p.pixels, p.weights.layout);
  p.splits = blocks.splits;
  if (p.splits > 1) {
    p.partial = workspace.floats(blocks.partial_floats);
    p.semaphores = workspace.counters(static_cast<size_t>(blocks.columns * blocks.rows));
  }
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  p.epilogue = superblock_epilogue(f, p.weights);
  with_codes_or_strings(f.w, [&]<class Codes>() { start<Codes>(p, blocks, work, stream); });
}

BiasEpilogue<AnyElements> superblock_rows(f16* rows, const ForwardProduct& f, Stream& stream) {
  const SuperblockWeights weights = superblock_operand(f.w);
  const int length = f.shape.sizes.length();
  const auto blocks = static_cast<unsigned>(
      ceil_div(weights.layout.tile_rows() * weights.layout.tile_columns(), superblock_rows_warps));
  const Work work{.bytes = static_cast<double>(f.w.resident().total()) + 2.0 * f.shape.sizes.k * length};
  with_codes(f.w, [&]<class Codes>() {
    const Grid grid{dim3(blocks), 32 * superblock_rows_warps, sizeof(SuperblockRowsShared<Codes>), true};
    launch("superblock_rows", work, grid, stream, superblock_rows_kernel<Codes>, rows, weights, length);
  });
  return superblock_epilogue(f, weights);
}

}  // namespace cuda
}  // namespace nibblenet
