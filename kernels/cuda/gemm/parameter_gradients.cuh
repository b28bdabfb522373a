#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/gemm/product.h"
#include "kernels/cuda/weights/half_copies.cuh"

// Epilogues of parameter gradients: they are stored, or applied at once as an SGD step.

namespace nibblenet {

/// PyTorch's SGD on one element: g = dw + weight_decay w; v = momentum v + g; w -= learning_rate v.
/// Pruned weights stay 0.
__device__ __forceinline__ void sgd_update(float& w, float& v, float dw, const SgdParameters& parameters) {
  const float gradient = dw + parameters.weight_decay * w;
  const bool pruned = parameters.keep_zeros && w == 0.0F;
  v = pruned ? 0.0F : parameters.momentum * v + gradient;
  w -= parameters.learning_rate * v;
}

/// Epilogue of the weight and bias gradients. Multiplies the sums by `factor`, then stores them or
/// applies an SGD step.
struct ParameterGradients {
  int filters = 0, channels = 0, taps = 1;
  float factor = 1.0F;
  float* dw = nullptr;  ///< [K, C, taps]; null: a step
  float* dbias = nullptr;
  float *w = nullptr, *w_velocity = nullptr, *bias = nullptr, *bias_velocity = nullptr;
  SgdParameters sgd = {}, sgd_of_bias = {};
  HalfCopies fp16 = {};

  __host__ __device__ int length() const { return channels * taps; }
  /// Takes the sum of the weight at `column` of a filter, in device order.
  __device__ void store(int filter, int column, float sum) const {
    const int64_t i = torch_index(filter, column, channels, taps);
    if (dw != nullptr) {
      dw[i] = sum * factor;
      return;
    }
    float weight = w[i];
    sgd_update(weight, w_velocity[i], sum * factor, sgd);
    w[i] = weight;
    fp16.store(filter, column, weight);
  }
  /// Takes the sums of an even column and the next one, which may not exist.
  __device__ void store_pair(int filter, int column, float first, float second) const {
    if (taps != 1 || channels % 2 != 0) {
      store(filter, column, first);
      if (column + 1 < length()) store(filter, column + 1, second);
      return;
    }
    const int64_t i = static_cast<int64_t>(filter) * channels + column;
    const float2 gradient = {first * factor, second * factor};
    if (dw != nullptr) {
      *reinterpret_cast<float2*>(dw + i) = gradient;
      return;
    }
    float2 weight = *reinterpret_cast<const float2*>(w + i);
    float2 velocity = *reinterpret_cast<const float2*>(w_velocity + i);
    sgd_update(weight.x, velocity.x, gradient.x, sgd);
    sgd_update(weight.y, velocity.y, gradient.y, sgd);
    *reinterpret_cast<float2*>(w + i) = weight;
    *reinterpret_cast<float2*>(w_velocity + i) = velocity;
    fp16.store_pair(filter, column, weight);
  }
  /// Whether store_fours() can be used: device order and PyTorch's order are equal.
  __device__ bool has_fours() const { return taps == 1 && channels % 4 == 0; }
  /// Takes the sums of `count` times four neighbouring columns. All loads are issued first, so that
  /// the steps wait for memory together.
  template <int count>
  __device__ __forceinline__ void store_fours(const int (&filter)[count], const int (&column)[count],
                                              const float4 (&sum)[count]) const {
    float4 weight[count] = {};
    float4 velocity[count] = {};
    bool exists[count];
#pragma unroll
    for (int e = 0; e < count; ++e) {
      exists[e] = filter[e] < filters && column[e] < channels;
      if (dw != nullptr || !exists[e]) continue;
      weight[e] = *reinterpret_cast<const float4*>(w + static_cast<int64_t>(filter[e]) * channels + column[e]);
      velocity[e] =
          *reinterpret_cast<const float4*>(w_velocity + static_cast<int64_t>(filter[e]) * channels + column[e]);
    }
#pragma unroll
    for (int e = 0; e < count; ++e) {
      if (!exists[e]) continue;
      const int64_t i = static_cast<int64_t>(filter[e]) * channels + column[e];
      const float4 gradient = {sum[e].x * factor, sum[e].y * factor, sum[e].z * factor, sum[e].w * factor};
      if (dw != nullptr) {
        *reinterpret_cast<float4*>(dw + i) = gradient;
        continue;
      }
      sgd_update(weight[e].x, velocity[e].x, gradient.x, sgd);
      sgd_update(weight[e].y, velocity[e].y, gradient.y, sgd);
      sgd_update(weight[e].z, velocity[e].z, gradient.z, sgd);
      sgd_update(weight[e].w, velocity[e].w, gradient.w, sgd);
      *reinterpret_cast<float4*>(w + i) = weight[e];
      *reinterpret_cast<float4*>(w_velocity + i) = velocity[e];
      fp16.store_pair(filter[e], column[e], {weight[e].x, weight[e].y});
      fp16.store_pair(filter[e], column[e] + 2, {weight[e].z, weight[e].w});
    }
  }
  __device__ void store_bias(int filter, float sum) const {
    if (dw != nullptr) {
      dbias[filter] = sum * factor;
      return;
    }
    sgd_update(bias[filter], bias_velocity[filter], sum * factor, sgd_of_bias);
  }
};

/// Epilogue of a product: stores its gradients, or applies its SGD step.
inline ParameterGradients parameter_gradients(const WeightGradientProduct& g) {
  const ConvolutionSizes& s = g.shape.sizes;
  ParameterGradients epilogue{.filters = s.k, .channels = s.c, .taps = s.taps(), .factor = g.factor};
  epilogue.dw = g.dw.data();
  epilogue.dbias = g.dbias.data();
  if (g.layer == nullptr) return epilogue;
  auto& weight = static_cast<WeightCuda&>(g.layer->weight);
  epilogue.w = weight.values().data();
  epilogue.w_velocity = g.layer->weight_velocity.data();
  epilogue.bias = g.layer->bias.data();
  epilogue.bias_velocity = g.layer->bias_velocity.data();
  epilogue.sgd = g.sgd;
  epilogue.sgd_of_bias = g.sgd.of_bias();
  epilogue.fp16 = half_copies_of(weight);
  return epilogue;
}

/// Epilogue of a split-K weight gradient: each block stores the sums of its split first.
struct WeightGradient {
  ParameterGradients epilogue;
  float* partial = nullptr;       ///< [splits, K, R S C]; null: the sums are whole
  float* partial_bias = nullptr;  ///< [splits, K]

  __device__ void store(int split, int filter, int column, float sum) const {
    if (partial == nullptr) return epilogue.store(filter, column, sum);
    partial[(static_cast<int64_t>(split) * epilogue.filters + filter) * epilogue.length() + column] = sum;
  }
  __device__ void store_pair(int split, int filter, int column, float first, float second) const {
    if (partial == nullptr) return epilogue.store_pair(filter, column, first, second);
    float* to = partial + (static_cast<int64_t>(split) * epilogue.filters + filter) * epilogue.length();
    to[column] = first;
    if (column + 1 < epilogue.length()) to[column + 1] = second;
  }
  /// Takes the bias sum of a filter, which may not exist.
  __device__ void store_bias(int split, int filter, float sum) const {
    if (filter >= epilogue.filters) return;
    if (partial == nullptr)
      epilogue.store_bias(filter, sum);
    else
      partial_bias[split * epilogue.filters + filter] = sum;
  }
};
/// Epilogue of a product whose reduction has `splits` splits. Partial sums lie in the workspace.
inline WeightGradient weight_gradient_of(const WeightGradientProduct& g, int splits, Workspace& workspace) {
  WeightGradient gradient{parameter_gradients(g)};
  if (splits == 1) return gradient;
  const auto filters = static_cast<size_t>(gradient.epilogue.filters);
  const size_t count = filters * static_cast<size_t>(gradient.epilogue.length());
  gradient.partial = workspace.floats(static_cast<size_t>(splits) * (count + filters));
  gradient.partial_bias = gradient.partial + static_cast<size_t>(splits) * count;
  return gradient;
}
inline Work weight_gradient_work(const ConvolutionSizes& s) {
  return work_of(s, static_cast<double>(sizeof(float)) * s.k * s.length(), sizeof(f16));
}
/// dw and dbias = sums over the splits in their order.
void add_up_weight_gradient(const WeightGradient& gradient, int splits, Stream& stream);

}  // namespace nibblenet
