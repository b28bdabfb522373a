#pragma once

#include "kernels/activations.h"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/training.h"

namespace nibblenet {

/// Calls f(Y* y, const X* x) with the types that the views hold: the one place where activations'
/// precision becomes a type.
template <class F>
void with_pointers(Activations y, ConstActivations x, F f) {
  const bool to_fp16 = y.precision() == Precision::float16;
  if (x.precision() == Precision::float16) {
    if (to_fp16)
      f(y.fp16().data(), x.fp16().data());
    else
      f(y.floats().data(), x.fp16().data());
  } else if (to_fp16) {
    f(y.fp16().data(), x.floats().data());
  } else {
    f(y.floats().data(), x.floats().data());
  }
}

/// The elements of a view that holds them as T. Throws Error where it does not.
template <class T>
const T* elements_of(ConstActivations x) {
  if constexpr (std::is_same_v<T, f16>)
    return x.fp16().data();
  else
    return x.floats().data();
}

/// Calls f(T* y, const T* x) for views of one precision. Throws Error where they differ.
template <class F>
void with_pointers_of_one(Activations y, ConstActivations x, F f) {
  if (y.precision() == Precision::float16)
    f(y.fp16().data(), x.fp16().data());
  else
    f(y.floats().data(), x.floats().data());
}

inline HalfGradient half_gradient(Activations dx, const GradientStore& store) {
  return {static_cast<uint4*>(dx.data()), reinterpret_cast<const uint4*>(store.relu_output.fp16().data()),
          store.overflow.data()};
}

}  // namespace nibblenet
