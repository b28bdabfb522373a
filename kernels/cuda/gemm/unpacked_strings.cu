#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_strings.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet::cuda {
namespace {

/// Warps for `blocks` string blocks.
Grid grid_of(int64_t blocks) {
  return {dim3(static_cast<unsigned>(ceil_div(blocks, int64_t{expanding_warps}))), 32 * expanding_warps, 0, true};
}

/// Work of expanding a weight to so many fp16 values.
Work work_of(const WeightCuda& w, int64_t values) {
  return {.bytes = static_cast<double>(w.resident().total()) + 2.0 * static_cast<double>(values)};
}

}  // namespace

BiasEpilogue<AnyElements> string_rows(f16* rows, const ForwardProduct& f, Stream& stream) {
  const StringBlocks layout(f.w.view().trellis());
  const Work work = work_of(f.w, f.w.shape().elements());
  with_quarters(f.w.view().trellis_quarters, [&]<int quarters>() {
    launch("string_rows", work, grid_of(layout.sequences() * layout.blocks()), stream, string_rows_kernel<quarters>,
           rows, layout, f.w.view().codes, f.shape.sizes.k);
  });
  return string_epilogue(f);
}

}  // namespace nibblenet::cuda
