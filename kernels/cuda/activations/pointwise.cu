#include "engine/core/random.h"
#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"

namespace nibblenet {
namespace {

// One thread per element, unless a kernel says otherwise.

/// y = max(x, 0)
__global__ void relu_forward_kernel(float* y, const float* x, int64_t count) {
  for_each_index(count, [&](int64_t i) { y[i] = relu(x[i]); });
}

/// relu_forward_kernel with four elements per thread: wide loads reach the full memory bandwidth.
__global__ void quad_relu_forward_kernel(float4* y, const float4* x, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const float4 from = x[i];
    y[i] = float4{relu(from.x), relu(from.y), relu(from.z), relu(from.w)};
  });
}

/// dx = dy where y > 0, else 0
template <class T>
__global__ void relu_backward_kernel(T* dx, const T* dy, const T* y, int64_t count) {
  for_each_index(count,
                 [&](int64_t i) { store_element(dx, i, load_element(y, i) > 0.0F ? load_element(dy, i) : 0.0F); });
}

/// Dropout: y = x scale where the element's draw is >= probability, else 0. Counter-based: the draw
/// of element i depends on the key and i alone. The backward pass draws the same mask again, so it
/// is not stored.
template <class T>
__global__ void dropout_kernel(T* y, const T* x, float probability, float scale, DropoutKey key, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const float draw = uniform_from_bits(random_bits(key.seed, key.stream, key.offset + static_cast<uint64_t>(i)));
    store_element(y, i, draw >= probability ? load_element(x, i) * scale : 0.0F);
  });
}

/// dropout_kernel for fp16 values, eight per thread.
__global__ void half_dropout_kernel(HalfGradient y, const uint4* x, float probability, float scale, DropoutKey key,
                                    int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const uint4 from = x[i];
    const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
    const uint64_t first = key.offset + 8 * static_cast<uint64_t>(i);
    float values[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float draw = uniform_from_bits(random_bits(key.seed, key.stream, first + static_cast<uint64_t>(e)));
      values[e] = draw >= probability ? fp16_in(pairs, e) * scale : 0.0F;
    }
    y.store(i, eight_fp16(values));
  });
}

/// y += x
__global__ void add_kernel(float* y, const float* x, int64_t count) {
  for_each_index(count, [&](int64_t i) { y[i] += x[i]; });
}

__global__ void sgd_step_kernel(float* w, float* v, const float* dw, SgdParameters parameters, int64_t count) {
  for_each_index(count, [&](int64_t i) { sgd_update(w[i], v[i], dw[i], parameters); });
}

/// average += share (x - average)
__global__ void move_average_kernel(float* average, const float* x, float share, int64_t count) {
  for_each_index(count, [&](int64_t i) { average[i] += share * (x[i] - average[i]); });
}

/// found = 1 where any element is not finite
template <class T>
__global__ void find_overflow_kernel(uint32_t* found, const T* x, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    if (!(fabsf(load_element(x, i)) <= 3.402823466e38F)) atomicMax(found, 1U);
  });
}

/// y = factor x, converted to y's precision
template <class Y, class X>
__global__ void convert_kernel(Y* y, const X* x, float factor, int64_t count) {
  for_each_index(count, [&](int64_t i) { store_element(y, i, factor * load_element(x, i)); });
}

/// y[i] = x[rows[i]], rows of `columns` elements
__global__ void gather_rows_kernel(float* y, const float* x, const int64_t* rows, int64_t columns, int64_t count) {
  for_each_index(count, [&](int64_t i) { y[i] = x[rows[i / columns] * columns + i % columns]; });
}

float dropout_scale(float probability) { return probability < 1.0F ? 1.0F / (1.0F - probability) : 0.0F; }

}  // namespace

namespace cuda {

void relu_forward(TensorView<float> y, TensorView<const float> x, Stream& stream) {
  const int64_t quads = x.elements() / 4;
  if (x.elements() % 4 == 0 && on_16_bytes(x.data()) && on_16_bytes(y.data()))
    launch("relu_forward", moves({y, x}), grid_for(quads), stream, quad_relu_forward_kernel,
           reinterpret_cast<float4*>(y.data()), reinterpret_cast<const float4*>(x.data()), quads);
  else
    launch("relu_forward", moves({y, x}), grid_for(x.elements()), stream, relu_forward_kernel, y.data(), x.data(),
           x.elements());
}

void relu_backward(Activations dx, ConstActivations dy, ConstActivations y, Stream& stream) {
  with_pointers_of_one(dx, dy, [&]<class T>(T* to, const T* from) {
    launch("relu_backward", moves({dx, dy, y}), grid_for(y.elements()), stream, relu_backward_kernel<T>, to, from,
           elements_of<T>(y), y.elements());
  });
}

void half_dropout(Activations y, ConstActivations x, float probability, DropoutKey key, const GradientStore& store,
                  Stream& stream) {
  launch("dropout", moves({y, x}), grid_for(x.elements() / 8), stream, half_dropout_kernel, half_gradient(y, store),
         static_cast<const uint4*>(x.data()), probability, dropout_scale(probability), key, x.elements() / 8);
}

void dropout(Activations y, ConstActivations x, float probability, DropoutKey key, Stream& stream) {
  with_pointers_of_one(y, x, [&]<class T>(T* to, const T* from) {
    launch("dropout", moves({y, x}), grid_for(x.elements()), stream, dropout_kernel<T>, to, from, probability,
           dropout_scale(probability), key, x.elements());
  });
}

void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw, SgdParameters parameters,
              Stream& stream) {
  const double flops = 6 * static_cast<double>(w.elements());
  launch("sgd_step", moves({w, w, v, v, dw}, flops), grid_for(w.elements()), stream, sgd_step_kernel, w.data(),
         v.data(), dw.data(), parameters, w.elements());
}

void add(TensorView<float> y, TensorView<const float> x, Stream& stream) {
  launch("add", moves({y, y, x}, static_cast<double>(x.elements())), grid_for(x.elements()), stream, add_kernel,
         y.data(), x.data(), x.elements());
}

void move_average(TensorView<float> average, TensorView<const float> x, float share, Stream& stream) {
  launch("move_average", moves({average, average, x}, 3 * static_cast<double>(x.elements())), grid_for(x.elements()),
         stream, move_average_kernel, average.data(), x.data(), share, x.elements());
}

void find_overflow(TensorView<uint32_t> found, ConstActivations x, Stream& stream) {
  with_pointer(x, [&]<class T>(const T* from) {
    launch("find_overflow", moves({x}), grid_for(x.elements()), stream, find_overflow_kernel<T>, found.data(), from,
           x.elements());
  });
}

void convert(Activations y, ConstActivations x, float factor, Stream& stream) {
  with_pointers(y, x, [&]<class Y, class X>(Y* to, const X* from) {
    launch("convert", moves({y, x}), grid_for(y.elements()), stream, convert_kernel<Y, X>, to, from, factor,
           y.elements());
  });
}

void gather_rows(TensorView<float> y, TensorView<const float> x, const int64_t* rows, Stream& stream) {
  launch("gather_rows", moves({y, y}), grid_for(y.elements()), stream, gather_rows_kernel, y.data(), x.data(), rows,
         x.shape().inner_elements(), y.elements());
}

}  // namespace cuda
}  // namespace nibblenet
