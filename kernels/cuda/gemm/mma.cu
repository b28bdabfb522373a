#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

template <class Codes>
void start(TensorProduct p, const Work& work, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes& s = p.pixels.sizes;
  const int across = ceil_div(p.pixels.columns(), warp_columns);
  const auto columns = static_cast<unsigned>(ceil_div(s.n, p.pixels.images) * p.pixels.bands);
  const auto rows = static_cast<unsigned>(ceil_div(p.weights.layout.down(), warps_down_tile));
  const int64_t blocks = int64_t{columns} * rows;
  // Parts of at least four superblocks.
  p.parts = split_k::mma.parts(blocks * warps_down_tile * across, int64_t{p.pixels.slices()} * s.taps() / 4);
  if (p.parts > 1) {
    p.partial = workspace.floats(static_cast<size_t>(p.parts * blocks * across * warp_columns * tile_rows));
    p.arrivals = workspace.counters(static_cast<size_t>(blocks));
  }
  const Grid grid{dim3(columns, rows, static_cast<unsigned>(p.parts)),
                  static_cast<unsigned>(32 * warps_down_tile * across),
                  static_cast<size_t>(TensorShared<Codes>::layout.bytes(p.pixels)), true};
  launch("tensor_product", work, grid, stream, tensor_product_kernel<Codes>, p);
}

}  // namespace

namespace cuda {

void mma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(mma::fits(f.shape), "mma", f.shape);
  const ConvolutionSizes& s = f.shape.sizes;
  TensorProduct p{.weights = superblock_operand(f.w), .x = f.x.halves().data(), .pixels = *mma::blocks_of(f.shape)};
  p.result = superblock_result(f, p.weights);
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  with_codes(f.w, [&]<class Codes>() { start<Codes>(p, work, workspace, stream); });
}

BiasResult<AnyElements> superblock_rows(f16* rows, const ForwardProduct& f, Stream& stream) {
  const SuperblockWeights weights = superblock_operand(f.w);
  const int length = f.shape.sizes.length();
  const auto blocks =
      static_cast<unsigned>(ceil_div(weights.layout.down() * weights.layout.across(), superblock_rows_warps));
  const Work work{.bytes = static_cast<double>(f.w.resident().total()) + 2.0 * f.shape.sizes.k * length};
  with_codes(f.w, [&]<class Codes>() {
    const Grid grid{dim3(blocks), 32 * superblock_rows_warps, sizeof(SuperblockRowsShared<Codes>), true};
    launch("superblock_rows", work, grid, stream, superblock_rows_kernel<Codes>, rows, weights, length);
  });
  return superblock_result(f, weights);
}

}  // namespace cuda
}  // namespace nibblenet
