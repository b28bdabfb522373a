#include "engine/core/random.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"

namespace nibblenet {
namespace {

// One thread an element in every kernel here.

/// y = max(x, 0)
__global__ void relu_forward_kernel(float* y, const float* x, int64_t count) {
  for_each_index(count, [&](int64_t i) { y[i] = relu(x[i]); });
}

/// dx = dy where y > 0, else 0
__global__ void relu_backward_kernel(float* dx, const float* dy, const float* y, int64_t count) {
  for_each_index(count, [&](int64_t i) { dx[i] = y[i] > 0.0F ? dy[i] : 0.0F; });
}

/// y = x scale where the element's draw is >= probability, else 0. Counter-based: element i's draw depends on the key
/// and i alone, so the backward pass draws the same mask and nothing is stored.
__global__ void dropout_kernel(float* y, const float* x, float probability, float scale, DropoutKey key,
                               int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const float draw = uniform_from_bits(random_bits(key.seed, key.stream, key.offset + static_cast<uint64_t>(i)));
    y[i] = draw >= probability ? x[i] * scale : 0.0F;
  });
}

/// PyTorch's SGD: g = dw + weight_decay w; v = momentum v + g; w -= learning_rate v. Pruned weights stay 0.
__global__ void sgd_step_kernel(float* w, float* v, const float* dw, SgdParameters parameters, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const float gradient = dw[i] + parameters.weight_decay * w[i];
    const bool pruned = parameters.keep_zeros && w[i] == 0.0F;
    v[i] = pruned ? 0.0F : parameters.momentum * v[i] + gradient;
    w[i] -= parameters.learning_rate * v[i];
  });
}

/// y = x in another precision
template <class Y, class X>
__global__ void convert_kernel(Y* y, const X* x, int64_t count) {
  for_each_index(count, [&](int64_t i) { store_element(y, i, load_element(x, i)); });
}

/// y[i] = x[rows[i]], rows of `columns` elements
__global__ void gather_rows_kernel(float* y, const float* x, const int64_t* rows, int64_t columns, int64_t count) {
  for_each_index(count, [&](int64_t i) { y[i] = x[rows[i / columns] * columns + i % columns]; });
}

/// Every operand read once, the result written once.
Work moves(int64_t elements, int operands, double flops = 0) {
  return {.bytes = 4.0 * static_cast<double>(elements) * operands, .flops = flops * static_cast<double>(elements)};
}

}  // namespace

namespace cuda {

void relu_forward(TensorView<float> y, TensorView<const float> x, Stream& stream) {
  launch("relu_forward", moves(x.elements(), 2), grid_for(x.elements()), stream, relu_forward_kernel, y.data(),
         x.data(), x.elements());
}

void relu_backward(TensorView<float> dx, TensorView<const float> dy, TensorView<const float> y, Stream& stream) {
  launch("relu_backward", moves(y.elements(), 3), grid_for(y.elements()), stream, relu_backward_kernel, dx.data(),
         dy.data(), y.data(), y.elements());
}

void dropout(TensorView<float> y, TensorView<const float> x, float probability, DropoutKey key, Stream& stream) {
  const float scale = probability < 1.0F ? 1.0F / (1.0F - probability) : 0.0F;
  launch("dropout", moves(x.elements(), 2), grid_for(x.elements()), stream, dropout_kernel, y.data(), x.data(),
         probability, scale, key, x.elements());
}

void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw, SgdParameters parameters,
              Stream& stream) {
  launch("sgd_step", moves(w.elements(), 5, 6), grid_for(w.elements()), stream, sgd_step_kernel, w.data(), v.data(),
         dw.data(), parameters, w.elements());
}

void convert(Activations y, ConstActivations x, Stream& stream) {
  const Work work{.bytes = static_cast<double>(y.elements()) *
                           static_cast<double>(bytes_of(x.precision()) + bytes_of(y.precision()))};
  with_pointers(y, x, [&]<class Y, class X>(Y* to, const X* from) {
    launch("convert", work, grid_for(y.elements()), stream, convert_kernel<Y, X>, to, from, y.elements());
  });
}

void gather_rows(TensorView<float> y, TensorView<const float> x, const int64_t* rows, Stream& stream) {
  launch("gather_rows", moves(y.elements(), 2), grid_for(y.elements()), stream, gather_rows_kernel, y.data(), x.data(),
         rows, x.shape().inner_elements(), y.elements());
}

}  // namespace cuda
}  // namespace nibblenet
