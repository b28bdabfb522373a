#include "kernels/cuda/gemm/wgmma_unpacked_launch.cuh"

namespace nibblenet::cuda {

void wgmma_integers(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  with_bits(f.w.view().bits, [&]<int bits>() { start_unpacked<IntegerCodes<bits>>(f, workspace, stream); });
}

}  // namespace nibblenet::cuda
