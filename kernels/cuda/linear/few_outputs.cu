#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/linear/few_outputs.cuh"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet::cuda {

void few_outputs_forward(const ForwardProduct& f, Workspace&, Stream& stream) {
  expect_fit(few_outputs::fits(f.shape), "few_outputs", f.shape);
  const ConvolutionSizes& s = f.shape.sizes;
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  const auto groups = static_cast<unsigned>(ceil_div(s.n, few_outputs_rows));
  const Grid grid{dim3(groups * static_cast<unsigned>(s.k)), few_outputs_threads, 0, true};
  with_half_operands(
      any_elements(f.y), f,
      [&]<class Weights>(const Weights& weights, const BiasEpilogue<AnyElements>& epilogue, float factor) {
        launch("few_outputs", work, grid, stream, few_outputs_kernel<Weights>, epilogue, f.x.fp16().data(), weights,
               factor);
      });
}

}  // namespace nibblenet::cuda
