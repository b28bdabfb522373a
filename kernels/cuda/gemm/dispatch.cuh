#pragma once

#include "kernels/activations.h"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/training.h"

namespace nibblenet {

/// Calls f(T* x) with the element type of the view. Precision becomes a type only here.
template <class View, class F>
void with_pointer(View x, F f) {
  if (x.precision() == Precision::float16)
    f(x.fp16().data());
  else
    f(x.floats().data());
}
/// Calls f(Y* y, const X* x) with the element types of both views.
template <class F>
void with_pointers(Activations y, ConstActivations x, F f) {
  with_pointer(y, [&](auto* to) { with_pointer(x, [&](const auto* from) { f(to, from); }); });
}

/// Elements of a view as T. Throws Error where it holds another type.
template <class T>
const T* elements_of(ConstActivations x) {
  if constexpr (std::is_same_v<T, f16>)
    return x.fp16().data();
  else
    return x.floats().data();
}

/// Calls f(T* y, const T* x) for two views of one precision. Throws Error where they differ.
template <class F>
void with_pointers_of_one(Activations y, ConstActivations x, F f) {
  with_pointer(y, [&]<class T>(T* to) { f(to, elements_of<T>(x)); });
}

inline HalfGradient half_gradient(Activations dx, const GradientStore& store) {
  return {static_cast<uint4*>(dx.data()), reinterpret_cast<const uint4*>(store.relu_output.fp16().data()),
          store.overflow.data()};
}

}  // namespace nibblenet
