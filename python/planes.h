#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "engine/core/tensor.h"

namespace nibblenet::python {

/// Activations [N, C, H, W] of somebody else, wherever their values lie in the host's memory.
template <class T>
struct Planes {
  T* data;
  Shape shape;
  std::array<int64_t, 4> strides;  ///< values from one image, channel, row and pixel to the next
};

/// The same memory as [N, H, W, C]; nothing where it does not lie so.
template <class T>
std::optional<TensorView<T>> channels_last(const Planes<T>& planes);

/// Copies images [first, first + N) to `to` [N, H, W, C].
void gather(TensorView<float> to, const Planes<const float>& from, int64_t first = 0);
/// Copies [N, H, W, C] to all images.
void scatter(const Planes<float>& to, TensorView<const float> from);

}  // namespace nibblenet::python
