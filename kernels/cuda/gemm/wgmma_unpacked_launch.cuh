#pragma once

#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/wgmma_launch.cuh"
#include "kernels/cuda/gemm/wgmma_unpacked.cuh"

namespace nibblenet {

/// Starts the product by packed weights that `Codes` unpacks. `most`: the widest block.
template <class Codes, int most = 128>
void start_unpacked(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes s = sizes_in_lines(f.shape);
  const PixelTiles pixels = PixelTiles::windows(f.x.fp16().data(), s);
  const SuperblockWeights w = superblock_operand(f.w);
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), sizeof(f16));
  with_wgmma_columns<most>(s.k, [&]<int columns>() {
    const WgmmaPixelPlan plan(pixels, s.k, columns);
    float* partial = plan.partial_floats > 0 ? workspace.floats(plan.partial_floats) : nullptr;
    start_wgmma("wgmma_unpacked", pixels, PackedRowTiles<Codes, columns>{w, ceil_div(s.c, wgmma_depth), s.size},
                {s.outputs(), s.k, nullptr}, ForwardFinish{superblock_epilogue(f, w)}, plan, partial, work, stream);
  });
}

}  // namespace nibblenet
