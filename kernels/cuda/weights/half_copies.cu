#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/weights/half_copies.cuh"
#include "kernels/cuda/weights/launchers.h"

namespace nibblenet {
namespace {

/// One thread per weight, in device order.
__global__ void renew_fp16_kernel(HalfCopies fp16, const float* w, int channels, int taps, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const auto filter = static_cast<int>(i / fp16.length);
    const auto column = static_cast<int>(i % fp16.length);
    fp16.store(filter, column, w[torch_index(filter, column, channels, taps)]);
  });
}

}  // namespace

namespace cuda {

void renew_fp16(WeightCuda& w, Stream& stream) {
  const Shape& shape = w.shape();
  const int taps = shape.rank() == 4 ? static_cast<int>(shape[2] * shape[3]) : 1;
  launch("renew_fp16", {.bytes = 2.0 * sizeof(float) * static_cast<double>(shape.elements())},
         grid_for(shape.elements()), stream, renew_fp16_kernel, half_copies_of(w), w.values().data(),
         static_cast<int>(shape[1]), taps, shape.elements());
}

}  // namespace cuda
}  // namespace nibblenet
