#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "engine/core/error.h"
#include "engine/core/memory.h"

namespace nibblenet {

/// Sizes of a dense row-major tensor of up to 4 dimensions. No dimensions: a scalar of 1 element.
class Shape {
 public:
  static constexpr int max_rank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  /// Throws ShapeError for more than 4 dimensions, negative sizes, or an element count beyond 2^62.
  explicit Shape(std::span<const int64_t> sizes);

  int rank() const { return rank_; }
  int64_t operator[](int dimension) const { return sizes_[static_cast<size_t>(dimension)]; }
  int64_t elements() const { return elements_; }
  /// Elements of one index of the first dimension: the weights of one output channel.
  int64_t inner_elements() const { return rank_ == 0 || sizes_[0] == 0 ? 0 : elements_ / sizes_[0]; }
  std::span<const int64_t> sizes() const { return {sizes_.data(), static_cast<size_t>(rank_)}; }
  friend auto operator<=>(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, max_rank> sizes_{};
  int rank_ = 0;
  int64_t elements_ = 1;
};

/// "64x3x11x11"
std::string to_string(const Shape& shape);

/// A non-owning view of a dense row-major tensor. It is small and copied by value; const lies in T.
template <class T>
class TensorView {
 public:
  TensorView() = default;
  TensorView(T* data, Shape shape) : data_(data), shape_(shape) {}
  /// A view of mutable data is also a view of const data.
  operator TensorView<const T>() const requires(!std::is_const_v<T>) { return {data_, shape_}; }

  T* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  int64_t size(int dimension) const { return shape_[dimension]; }
  int64_t elements() const { return shape_.elements(); }
  T& operator[](int64_t index) const { return data_[index]; }
  std::span<T> span() const { return {data_, static_cast<size_t>(shape_.elements())}; }
  T* begin() const { return data_; }
  T* end() const { return data_ + shape_.elements(); }
  /// A view of indices [begin, begin + count) of the first dimension. Throws ShapeError outside it.
  TensorView slice(int64_t begin, int64_t count) const;

 private:
  T* data_ = nullptr;
  Shape shape_;
};

/// A dense row-major tensor that owns its memory. It is move-only; contents are not initialised.
template <class T>
class Tensor {
 public:
  Tensor() = default;
  Tensor(MemoryResource& resource, Shape shape, MemoryCategory category)
      : buffer_(resource, static_cast<size_t>(shape.elements()), category), shape_(shape) {}

  T* data() { return buffer_.data(); }
  const T* data() const { return buffer_.data(); }
  const Shape& shape() const { return shape_; }
  int64_t elements() const { return buffer_.size() == 0 ? 0 : shape_.elements(); }
  bool empty() const { return buffer_.size() == 0; }
  TensorView<T> view() { return {buffer_.data(), shape_}; }
  TensorView<const T> view() const { return {buffer_.data(), shape_}; }

 private:
  Buffer<T> buffer_;
  Shape shape_;
};

template <class T>
TensorView<T> TensorView<T>::slice(int64_t begin, int64_t count) const {
  if (shape_.rank() == 0 || begin < 0 || count < 0 || begin + count > shape_[0])
    fail<ShapeError>("slice [{}, {}) is outside the first dimension of {}", begin, begin + count, to_string(shape_));
  std::array<int64_t, Shape::max_rank> sizes{};
  for (int i = 0; i < shape_.rank(); ++i) sizes[static_cast<size_t>(i)] = shape_[i];
  sizes[0] = count;
  return {data_ + begin * shape_.inner_elements(), Shape(std::span(sizes.data(), static_cast<size_t>(shape_.rank())))};
}

/// Throws ShapeError unless `actual` is `expected`; `what` names the operand.
void expect_shape(const Shape& actual, const Shape& expected, std::string_view what);

}  // namespace nibblenet
