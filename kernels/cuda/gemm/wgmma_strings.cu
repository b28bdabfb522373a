#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/wgmma_fit.h"
#include "kernels/cuda/gemm/wgmma_launch.cuh"
#include "kernels/cuda/gemm/wgmma_strings.cuh"

namespace nibblenet::cuda {

void wgmma_strings(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits(f.shape) && wgmma::unpacks_strings(f.shape), "wgmma", f.shape);
  const ConvolutionSizes s = sizes_in_lines(f.shape);
  const PixelTiles pixels = PixelTiles::windows(f.x.fp16().data(), s);
  const SuperblockWeights w = superblock_operand(f.w);
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), sizeof(f16));
  with_wgmma_columns(s.k, [&]<int columns>() {
    const WgmmaPixelPlan plan(pixels, s.k, columns);
    float* partial = plan.partial_floats > 0 ? workspace.floats(plan.partial_floats) : nullptr;
    with_quarters(f.w.view().trellis_quarters, [&]<int quarters>() {
      const StringRowTiles<quarters, columns> rows{w.strings, w.codes, static_cast<int>(w.layout.tile_rows())};
      start_wgmma("wgmma_forward", pixels, rows, {s.outputs(), s.k, nullptr}, ForwardFinish{string_epilogue(f)}, plan,
                  partial, work, stream);
    });
  });
}

}  // namespace nibblenet::cuda
