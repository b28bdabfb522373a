#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/wgmma_fit.h"

namespace nibblenet::cuda {

void wgmma_unpacked_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_unpacked(f.shape), "wgmma_unpacked", f.shape);
  if (f.w.layout() == WeightLayout::strings) return wgmma_strings(f, workspace, stream);
  if (f.w.traits().integers) return wgmma_integers(f, workspace, stream);
  wgmma_codebooks(f, workspace, stream);
}

}  // namespace nibblenet::cuda
