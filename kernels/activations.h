#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "engine/core/error.h"
#include "engine/core/half.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// The type of the factors of a layer's products. Sums are float32, those of int8 int32.
///
/// Between layers, activations are float16 in float16, and float32 in all others: a layer of
/// bfloat16 or int8 rounds its own input. Between two layers of int8 they may be bytes
/// (Weight::byte_scale()). Weights that are not packed are stored in float32, float16 or bfloat16.
/// Training in float16 keeps float32 weights beside the fp16 values.
enum class Precision : uint8_t { float32, float16, bfloat16, int8 };

/// All precisions, by name.
inline constexpr std::array<std::pair<std::string_view, Precision>, 4> precisions = {{{"float32", Precision::float32},
                                                                                      {"float16", Precision::float16},
                                                                                      {"bfloat16", Precision::bfloat16},
                                                                                      {"int8", Precision::int8}}};
/// Name of a precision, and its inverse. Parsing throws UsageError.
constexpr std::string_view to_string(Precision precision) { return precisions[static_cast<size_t>(precision)].first; }
inline Precision parse_precision(std::string_view name) {
  for (const auto& [known, precision] : precisions)
    if (known == name) return precision;
  fail<UsageError>("precision '{}': there are float32, float16, bfloat16 and int8", name);
}

/// The precision in which activations are stored between layers, but for bytes: float32 or float16.
constexpr Precision storage_of(Precision precision) {
  return precision == Precision::float16 ? Precision::float16 : Precision::float32;
}
/// Bytes of a value.
constexpr size_t bytes_of(Precision precision) {
  if (precision == Precision::int8) return 1;
  return precision == Precision::float32 ? sizeof(float) : sizeof(f16);
}

/// The alignment of an address in bytes, at most 16: as many as a kernel can load at once.
inline int alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data) | 16U;
  return static_cast<int>(address & (~address + 1));
}
inline bool on_16_bytes(const void* data) { return alignment_of(data) == 16; }

/// The numbers that bytes without a sign stand for: byte * step, with 0 <= byte <= most.
struct ByteScale {
  float step = 0.0F;
  int most = 255;

  friend bool operator==(const ByteScale&, const ByteScale&) = default;
};

/// What bytes between layers stand for: numbers of a scale, but in images whose `invalid` is not 0.
/// There, some x was NaN or infinite, which no byte is; all are taken for NaN. `Byte` is uint8_t or
/// const uint8_t.
template <class Byte>
struct ByteForm {
  ByteScale scale;
  Byte* invalid = nullptr;  ///< [N]
};

/// A view of activations: float32, float16, or bytes of int8, which are unsigned. A view of floats
/// or fp16 values is one. `Void` is void or const void.
template <class Void>
class AnyActivations {
  template <class T>
  using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;

 public:
  AnyActivations() = default;
  AnyActivations(TensorView<Element<float>> view) : data_(view.data()), shape_(view.shape()) {}
  AnyActivations(TensorView<Element<f16>> view)
      : data_(view.data()), shape_(view.shape()), precision_(Precision::float16) {}
  AnyActivations(TensorView<float> view) requires(std::is_const_v<Void>)
      : AnyActivations(TensorView<const float>(view)) {}
  AnyActivations(TensorView<f16> view) requires(std::is_const_v<Void>) : AnyActivations(TensorView<const f16>(view)) {}
  AnyActivations(Void* data, const Shape& shape, Precision precision)
      : data_(data), shape_(shape), precision_(precision) {}
  AnyActivations(Element<uint8_t>* data, const Shape& shape, const ByteForm<Element<uint8_t>>& form)
      : data_(data), shape_(shape), precision_(Precision::int8), form_(form) {}
  /// A view of mutable activations is also a view of const ones.
  operator AnyActivations<const void>() const requires(!std::is_const_v<Void>) {
    if (precision_ != Precision::int8) return {data_, shape_, precision_};
    return {static_cast<const uint8_t*>(data_), shape_, {form_.scale, form_.invalid}};
  }

  Void* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  int64_t size(int dimension) const { return shape_[dimension]; }
  int64_t elements() const { return shape_.elements(); }
  Precision precision() const { return precision_; }
  /// Of bytes.
  const ByteForm<Element<uint8_t>>& form() const { return form_; }
  AnyActivations reshaped(const Shape& shape) const {
    AnyActivations result = *this;
    result.shape_ = shape;
    return result;
  }
  /// Images [first, first + count) of a batch.
  AnyActivations slice(int64_t first, int64_t count) const {
    std::array<int64_t, Shape::max_rank> sizes{};
    std::ranges::copy(shape_.sizes(), sizes.begin());
    sizes[0] = count;
    using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
    const int64_t bytes = first * shape_.inner_elements() * static_cast<int64_t>(bytes_of(precision_));
    AnyActivations result = reshaped(Shape(std::span(sizes.data(), static_cast<size_t>(shape_.rank()))));
    result.data_ = static_cast<Byte*>(data_) + bytes;
    if (form_.invalid != nullptr) result.form_.invalid += first;
    return result;
  }

  /// Throws Error when they are stored as something else.
  TensorView<Element<float>> floats() const { return as<float>(Precision::float32); }
  TensorView<Element<f16>> fp16() const { return as<f16>(Precision::float16); }
  TensorView<Element<uint8_t>> bytes() const { return as<uint8_t>(Precision::int8); }

 private:
  template <class T>
  TensorView<Element<T>> as(Precision wanted) const {
    if (data_ != nullptr && precision_ != wanted)
      fail<Error>("expected {} activations, got {}", to_string(wanted), to_string(precision_));
    return {static_cast<Element<T>*>(data_), shape_};
  }

  Void* data_ = nullptr;
  Shape shape_;
  Precision precision_ = Precision::float32;
  ByteForm<Element<uint8_t>> form_;
};
/// Mutable and read-only activations.
using Activations = AnyActivations<void>;
using ConstActivations = AnyActivations<const void>;

}  // namespace nibblenet
