#include "kernels/cuda/gemm/wgmma_unpacked_launch.cuh"

namespace nibblenet::cuda {

void wgmma_strings(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  with_quarters(f.w.view().trellis_quarters, [&]<int quarters>() {
    constexpr int most = quarters < 12 ? 128 : 96;  // without registers in local memory
    start_unpacked<StringCodes<quarters>, most>(f, workspace, stream);
  });
}

}  // namespace nibblenet::cuda
