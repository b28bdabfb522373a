#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

template <class Codes>
void start(MmaProduct p, const Work& work, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes& s = p.pixels.sizes;
  const int across = ceil_div(p.pixels.columns(), mma_warp_columns);
  const auto columns = static_cast<unsigned>(ceil_div(s.n, p.pixels.images) * p.pixels.bands);
  const auto rows = static_cast<unsigned>(ceil_div(p.weights.layout.tile_rows(), mma_row_warps));
  const int64_t blocks = int64_t{columns} * rows;
  // Each split has at least four superblocks.
  p.splits = split_k::mma.splits(blocks * mma_row_warps * across, int64_t{p.pixels.slices()} * s.taps() / 4);
  if (p.splits > 1) {
    p.partial = workspace.floats(static_cast<size_t>(p.splits * blocks * across * mma_warp_columns * mma_rows));
    p.semaphores = workspace.counters(static_cast<size_t>(blocks));
  }
  const Grid grid{dim3(columns, rows, static_cast<unsigned>(p.splits)),
                  static_cast<unsigned>(32 * mma_row_warps * across),
                  static_cast<size_t>(MmaMemory<Codes>::layout.bytes(p.pixels)), true};
  launch("mma_product", work, grid, stream, mma_kernel<Codes>, p);
}

}  // namespace

namespace cuda {

void mma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(mma::fits(f.shape), "mma", f.shape);
  const ConvolutionSizes& s = f.shape.sizes;
  const SuperblockWeights weights = superblock_operand(f.w);
  const MmaProduct p{.weights = weights,
                     .x = f.x.fp16().data(),
                     .pixels = *mma::blocks_of(f.shape),
                     .epilogue = superblock_epilogue(f, weights)};
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  with_codes(f.w, [&]<class Codes>() { start<Codes>(p, work, workspace, stream); });
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
