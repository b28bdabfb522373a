#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "engine/core/random.h"
#include "kernels/backend.h"

namespace nibblenet::testing {

/// A tensor on the host: copyable, comparable, and in a vector that is exactly as long as the shape
/// says.
struct Values {
  Shape shape;
  std::vector<float> data;

  Values() = default;
  explicit Values(const Shape& sizes, float value = 0.0F)
      : shape(sizes), data(static_cast<size_t>(sizes.elements()), value) {}

  TensorView<const float> view() const { return {data.data(), shape}; }
  TensorView<float> view() { return {data.data(), shape}; }
  friend bool operator==(const Values&, const Values&) = default;
};

/// Stricter than ==: tells -0 from 0, and a NaN equals itself.
inline bool same_bits(const Values& a, const Values& b) {
  return a.shape == b.shape &&
         std::ranges::equal(a.data, b.data, {}, std::bit_cast<uint32_t, float>, std::bit_cast<uint32_t, float>);
}

/// Uniform in [-1, 1).
inline Values uniform(const Shape& shape, uint64_t seed) {
  Random random(seed);
  Values values(shape);
  for (float& value : values.data) value = 2.0F * random.uniform() - 1.0F;
  return values;
}

/// Whole multiples of `unit`, at most `largest` of them either way: sums of their products are
/// exact in float32 in any order, so that tests may ask for equality.
inline Values integers(const Shape& shape, uint64_t seed, int64_t largest = 3, int64_t unit = 1) {
  Random random(seed);
  Values values(shape);
  for (float& value : values.data)
    value = static_cast<float>(unit *
                               (static_cast<int64_t>(random.below(static_cast<uint64_t>(2 * largest + 1))) - largest));
  return values;
}

/// Multiples of 4 in random order, no two the same.
inline Values distinct(const Shape& shape, uint64_t seed) {
  Random random(seed);
  Values values(shape);
  for (size_t i = 0; i < values.data.size(); ++i) {
    const size_t j = random.below(i + 1);
    values.data[i] = values.data[j];
    values.data[j] = 4.0F * static_cast<float>(i);
  }
  return values;
}

/// A copy in the backend's memory.
inline Tensor<float> on(Backend& backend, const Values& values) {
  Tensor<float> tensor(backend, values.shape, MemoryCategory::data);
  backend.copy_from_host(tensor.data(), values.data.data(), values.data.size() * sizeof(float));
  return tensor;
}

/// A float16 copy in the backend's memory.
inline Buffer<f16> fp16_on(Backend& backend, const Values& values) {
  std::vector<f16> fp16(values.data.size());
  for (size_t i = 0; i < fp16.size(); ++i) fp16[i].bits = f32_to_f16(values.data[i]);
  Buffer<f16> buffer(backend, fp16.size(), MemoryCategory::data);
  backend.copy_from_host(buffer.data(), fp16.data(), buffer.bytes());
  return buffer;
}

/// Whether the backend computes a convolution with its max pooling in one operation.
inline bool fuses_pooling(const Inference& backend, ConstActivations y, ConstActivations x, const Weight& w,
                          Window window, Window pool) {
  return backend
      .route(w, {.x = x.shape(),
                 .precision = x.precision(),
                 .y = y.precision(),
                 .window = window,
                 .pool = pool,
                 .flat = y.shape().rank() == 2,
                 .aligned = on_16_bytes(x.data()) && on_16_bytes(y.data())})
      .has_value();
}

/// A copy on the host.
inline Values from(Backend& backend, TensorView<const float> tensor) {
  Values values(tensor.shape());
  backend.copy_to_host(values.data.data(), tensor.data(), values.data.size() * sizeof(float));
  return values;
}

/// The output of `operation(view)`, of this shape. It is full of NaN before, so that an element
/// which is left out shows.
template <class Operation>
Values output_of(Backend& backend, const Shape& shape, Operation&& operation) {
  Tensor<float> output = on(backend, Values(shape, std::numeric_limits<float>::quiet_NaN()));
  operation(output.view());
  return from(backend, output.view());
}

inline Values linear(Backend& backend, const Values& x, Weight& w, const Values& bias,
                     Epilogue epilogue = Epilogue::none) {
  const Tensor<float> input = on(backend, x);
  const Tensor<float> offset = on(backend, bias);
  return output_of(backend, {x.shape[0], w.shape()[0]},
                   [&](TensorView<float> y) { backend.linear_forward(y, input.view(), w, offset.view(), epilogue); });
}

inline Values conv2d(Backend& backend, const Values& x, Weight& w, const Values& bias, Window window,
                     Epilogue epilogue = Epilogue::none) {
  const Tensor<float> input = on(backend, x);
  const Tensor<float> offset = on(backend, bias);
  const Shape shape = {x.shape[0], window.output(x.shape[1]), window.output(x.shape[2]), w.shape()[0]};
  return output_of(backend, shape, [&](TensorView<float> y) {
    backend.conv2d_forward(y, input.view(), w, offset.view(), window, epilogue);
  });
}

inline Values dropped(Backend& backend, const Values& x, float probability, DropoutKey key) {
  const auto input = on(backend, x);
  return output_of(backend, x.shape,
                   [&](TensorView<float> y) { backend.training().dropout(y, input.view(), probability, key); });
}

}  // namespace nibblenet::testing
