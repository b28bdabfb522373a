#include "kernels/cuda/gemm/wgmma_fit.h"
#include "kernels/cuda/gemm/wgmma_unpacked_launch.cuh"

namespace nibblenet::cuda {

void wgmma_codebooks(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  with_bits(f.w.view().bits, [&]<int bits>() {
    if constexpr (bits <= wgmma::most_codebook_bits)
      start_unpacked<CodebookCodes<bits, wgmma::table_copies(bits)>>(f, workspace, stream);
  });
}

}  // namespace nibblenet::cuda
