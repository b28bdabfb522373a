#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace nibblenet {
namespace {

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, distance));
  return value;
}

/// The target distribution of a row of logits: one class, or a probability for each.
struct LabelTarget {
  const int32_t* labels;
  __device__ double operator()(int64_t row, int k) const { return k == labels[row] ? 1.0 : 0.0; }
};
struct SoftTarget {
  const float* targets;
  int classes;
  __device__ double operator()(int64_t row, int k) const { return targets[row * classes + k]; }
};

/// Cross-entropy: losses[n] = sum over k of target (log(sum exp(z - max z)) - (z[k] - max z)), and
/// dlogits = (softmax - target) scale unless null. One warp per row of K logits. Computes in
/// double: its cost is negligible beside the layers'.
template <class Target>
__global__ void cross_entropy_kernel(float* losses, float* dlogits, const float* logits, Target target, int64_t rows,
                                     int classes, float scale) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // a whole warp leaves
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float* z = logits + row * classes;

  float largest = -INFINITY;
  for (int k = lane; k < classes; k += 32) largest = fmaxf(largest, z[k]);
  largest = warp_max(largest);
  double sum = 0;
  for (int k = lane; k < classes; k += 32) sum += exp(static_cast<double>(z[k] - largest));
  sum = warp_sum(sum);

  double loss = 0;
  for (int k = lane; k < classes; k += 32)
    if (const double part = target(row, k); part > 0) loss += part * (log(sum) - static_cast<double>(z[k] - largest));
  loss = warp_sum(loss);
  if (lane == 0) losses[row] = static_cast<float>(loss);
  if (dlogits == nullptr) return;
  for (int k = lane; k < classes; k += 32) {
    const double probability = exp(static_cast<double>(z[k] - largest)) / sum;
    dlogits[row * classes + k] = static_cast<float>(probability - target(row, k)) * scale;
  }
}

template <class Target>
void launch_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                          Target target, float scale, Stream& stream) {
  constexpr int64_t rows_of_block = 4;
  const int64_t rows = logits.size(0);
  const Grid grid{dim3(static_cast<unsigned>(ceil_div(rows, rows_of_block))), 32 * rows_of_block};
  launch("cross_entropy", {.bytes = 8.0 * static_cast<double>(logits.elements())}, grid, stream,
         cross_entropy_kernel<Target>, losses.data(), dlogits.data(), logits.data(), target, rows,
         static_cast<int>(logits.size(1)), scale);
}

}  // namespace

namespace cuda {

void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                   TensorView<const int32_t> labels, float scale, Stream& stream) {
  launch_cross_entropy(losses, dlogits, logits, LabelTarget{labels.data()}, scale, stream);
}

void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                        TensorView<const float> targets, float scale, Stream& stream) {
  launch_cross_entropy(losses, dlogits, logits, SoftTarget{targets.data(), static_cast<int>(logits.size(1))}, scale,
                       stream);
}

}  // namespace cuda
}  // namespace nibblenet
