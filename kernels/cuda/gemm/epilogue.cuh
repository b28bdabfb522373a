#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/weights/readers.cuh"

namespace nibblenet {

/// Activations whose precision is a runtime value, for kernels with one instantiation for both.
struct AnyElements {
  void* data;
  bool fp16;
};
__device__ __forceinline__ void store_element(const AnyElements& to, int64_t index, float value) {
  if (to.fp16)
    store_element(static_cast<f16*>(to.data), index, value);
  else
    store_element(static_cast<float*>(to.data), index, value);
}

/// y [pixels, K] = epilogue(sum * factor + bias). `Y`: float*, f16* or AnyElements.
template <class Y>
struct BiasEpilogue {
  Y y;
  const float* bias;  ///< [K]
  int rows;           ///< K
  int columns;        ///< output pixels
  float factor;       ///< undoes what the weights, or their steps, were multiplied by
  bool with_relu;
  GroupSteps steps = {};  ///< of each row, or of all, where the weights leave them to the epilogue
  bool one_step_for_all = false;

  /// Epilogue of one row (output channel): sum -> relu(sum * factor * step + bias).
  struct Row {
    float factor, step, bias;
    bool with_relu;
    __device__ float operator()(float sum) const {
      const float value = sum * factor * step + bias;
      return with_relu ? relu(value) : value;
    }
  };
  __device__ Row of_row(int i) const {
    return {factor, steps.scales == nullptr ? 1.0F : steps(one_step_for_all ? 0 : i), bias[i], with_relu};
  }

  __device__ void store(int i, int j, int, float sum) const {
    if (i < rows && j < columns) store_element(y, static_cast<int64_t>(j) * rows + i, of_row(i)(sum));
  }
};

}  // namespace nibblenet
