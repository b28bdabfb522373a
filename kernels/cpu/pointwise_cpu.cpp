#include <algorithm>
#include <cmath>

#include "engine/core/random.h"
#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {
namespace {

/// Cross-entropy of each row with target(n, k), a distribution over the classes k.
template <class Target>
void cross_entropy_rows(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                        float scale, Target&& target) {
  const int64_t classes = logits.size(1);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < logits.size(0); ++n) {
    const float* row = logits.data() + n * classes;
    const float largest = *std::max_element(row, row + classes);
    double sum = 0;
    for (int64_t k = 0; k < classes; ++k) sum += std::exp(static_cast<double>(row[k] - largest));
    double loss = 0;
    for (int64_t k = 0; k < classes; ++k)
      if (const double part = target(n, k); part > 0)
        loss += part * (std::log(sum) - static_cast<double>(row[k] - largest));
    losses[n] = static_cast<float>(loss);
    if (dlogits.data() == nullptr) continue;
    for (int64_t k = 0; k < classes; ++k) {
      const double probability = std::exp(static_cast<double>(row[k] - largest)) / sum;
      dlogits[n * classes + k] = static_cast<float>(probability - target(n, k)) * scale;
    }
  }
}

}  // namespace

void CpuBackend::relu_forward(TensorView<float> y, TensorView<const float> x) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.elements(); ++i) y[i] = x[i] < 0.0F ? 0.0F : x[i];  // keeps NaN
}

void CpuBackend::relu_backward(Activations to, ConstActivations from, ConstActivations out) {
  const TensorView<float> dx = to.floats();
  const TensorView<const float> dy = from.floats(), y = out.floats();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < y.elements(); ++i) dx[i] = y[i] > 0.0F ? dy[i] : 0.0F;
}

void CpuBackend::dropout(Activations out, ConstActivations in, float probability, DropoutKey key,
                         const GradientStore& store) {
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  const float scale = probability < 1.0F ? 1.0F / (1.0F - probability) : 0.0F;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.elements(); ++i) {
    const float draw = uniform_from_bits(random_bits(key.seed, key.stream, key.offset + static_cast<uint64_t>(i)));
    y[i] = draw >= probability ? x[i] * scale : 0.0F;
  }
  finish_gradient(out, store);
}

void CpuBackend::cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                               TensorView<const int32_t> labels, float scale) {
  cross_entropy_rows(losses, dlogits, logits, scale, [=](int64_t n, int64_t k) { return k == labels[n] ? 1.0 : 0.0; });
}

void CpuBackend::soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                                    TensorView<const float> targets, float scale) {
  cross_entropy_rows(losses, dlogits, logits, scale,
                     [=](int64_t n, int64_t k) { return static_cast<double>(targets[n * logits.size(1) + k]); });
}

void CpuBackend::find_overflow(TensorView<uint32_t> found, ConstActivations x) {
  if (!std::ranges::all_of(x.floats(), [](float value) { return std::isfinite(value); })) found[0] = 1;
}

void CpuBackend::add(TensorView<float> y, TensorView<const float> x) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.elements(); ++i) y[i] += x[i];
}

void CpuBackend::sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                          SgdParameters parameters) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < w.elements(); ++i) {
    const float gradient = dw[i] + parameters.weight_decay * w[i];
    const bool pruned = parameters.keep_zeros && w[i] == 0.0F;
    v[i] = pruned ? 0.0F : parameters.momentum * v[i] + gradient;
    w[i] -= parameters.learning_rate * v[i];
  }
}

void CpuBackend::move_average(TensorView<float> average, TensorView<const float> x, float share) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.elements(); ++i) average[i] += share * (x[i] - average[i]);
}

}  // namespace nibblenet
