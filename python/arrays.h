#pragma once

#include <nanobind/ndarray.h>

#include <array>

#include "engine/core/error.h"
#include "python/planes.h"

namespace nibblenet::python {

/// Throws ShapeError for more than 4 dimensions.
template <class Array>
Shape shape_of(const Array& array) {
  std::array<int64_t, Shape::max_rank> sizes{};
  if (array.ndim() > sizes.size()) fail<ShapeError>("an array of {} dimensions", array.ndim());
  for (size_t i = 0; i < array.ndim(); ++i) sizes[i] = static_cast<int64_t>(array.shape(i));
  return Shape(std::span<const int64_t>(sizes.data(), array.ndim()));
}

/// Of an array [N, C, H, W].
template <class T>
Planes<T> planes_of(const nanobind::ndarray<T, nanobind::ndim<4>, nanobind::device::cpu>& array) {
  return {array.data(), shape_of(array), {array.stride(0), array.stride(1), array.stride(2), array.stride(3)}};
}

}  // namespace nibblenet::python
