#include <limits>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/linear/few_outputs.cuh"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet {
namespace {

bool suits(ConstActivations x, const WeightCuda& w) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return x.precision() == Precision::float16 && w.form() != WeightCuda::Form::float32 &&
         w.layout() == WeightLayout::channels && w.shape()[0] <= cuda::few_outputs && x.size(1) % 8 == 0 &&
         x.size(1) <= std::numeric_limits<int>::max() / few_outputs_rows && aligned(x.halves().data()) &&
         aligned(w.halves());
}

}  // namespace

namespace cuda {

bool few_outputs_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                                Epilogue epilogue, Stream& stream) {
  if (!suits(x, w)) return false;
  const ConvolutionSizes s = sizes_of(as_images(x.shape()), as_images(y.shape()), {});
  const Work work = work_of(s, static_cast<double>(w.resident().total()), static_cast<double>(sizeof(f16)));
  const auto groups = static_cast<unsigned>((s.n + few_outputs_rows - 1) / few_outputs_rows);
  const Grid grid{dim3(groups * static_cast<unsigned>(s.k)), few_outputs_threads, 0, true};
  const bool halves = y.precision() == Precision::float16;
  const AnyElements to{halves ? static_cast<void*>(y.halves().data()) : y.floats().data(), halves};
  with_half_operands(to, w, bias.data(), s, epilogue == Epilogue::relu,
                     [&]<class Weights>(const Weights& weights, const BiasResult<AnyElements>& result, float factor) {
                       launch("few_outputs", work, grid, stream, few_outputs_kernel<Weights>, result, x.halves().data(),
                              weights, factor);
                     });
  return true;
}

}  // namespace cuda
}  // namespace nibblenet
