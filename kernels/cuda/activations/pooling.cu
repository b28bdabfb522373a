#include <algorithm>
#include <limits>

#include "kernels/cuda/activations/half_pooling.cuh"
#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"

namespace nibblenet {
namespace {

// Every kernel here uses one thread per element of the result, channels innermost: neighbouring
// threads touch neighbouring memory. Backward passes gather, so no two threads write one element.

/// Sizes of an image batch, and the index of an element.
struct ImageSizes {
  int64_t h;
  int64_t w;
  int64_t c;
  __device__ int64_t at(int64_t n, int64_t y, int64_t x, int64_t channel) const {
    return ((n * h + y) * w + x) * c + channel;
  }
};

struct ImagePlace {
  int64_t n;
  int64_t y;
  int64_t x;
  int64_t c;
  __device__ ImagePlace(const ImageSizes& sizes, int64_t i)
      : n(i / sizes.c / sizes.w / sizes.h),
        y(i / sizes.c / sizes.w % sizes.h),
        x(i / sizes.c % sizes.w),
        c(i % sizes.c) {}
};

/// Forward: y = maximum of the window, or NaN if it holds one; argmax = the position of the first
/// maximum in the window. If nothing exceeds -infinity, that is the first position outside the
/// padding.
template <class Y, class X>
__global__ void max_pool2d_forward_kernel(Y* y, uint8_t* argmax, const X* x, ImageSizes output, ImageSizes input,
                                          Window window, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const ImagePlace place(output, i);
    float best = -INFINITY;
    int64_t where = -1;
    for (int64_t r = 0; r < window.size; ++r) {
      for (int64_t s = 0; s < window.size; ++s) {
        const int64_t h = place.y * window.stride - window.padding + r;
        const int64_t w = place.x * window.stride - window.padding + s;
        if (h < 0 || h >= input.h || w < 0 || w >= input.w) continue;
        const float value = load_element(x, input.at(place.n, h, w, place.c));
        if (where < 0) where = r * window.size + s;
        if (value > best || isnan(value)) {
          best = value;
          where = r * window.size + s;
        }
      }
    }
    store_element(y, i, best);
    if (argmax != nullptr) argmax[i] = static_cast<uint8_t>(where);
  });
}

/// Backward: dx = sum of dy over the windows whose maximum is this element.
template <class T>
__global__ void max_pool2d_backward_kernel(T* dx, const T* dy, const uint8_t* argmax, ImageSizes input,
                                           ImageSizes output, Window window, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const ImagePlace place(input, i);
    float sum = 0.0F;
    for (int64_t r = 0; r < window.size; ++r) {
      const int64_t down = place.y + window.padding - r;
      if (down < 0 || down % window.stride != 0 || down / window.stride >= output.h) continue;
      for (int64_t s = 0; s < window.size; ++s) {
        const int64_t across = place.x + window.padding - s;
        if (across < 0 || across % window.stride != 0 || across / window.stride >= output.w) continue;
        const int64_t from = output.at(place.n, down / window.stride, across / window.stride, place.c);
        if (argmax[from] == r * window.size + s) sum += load_element(dy, from);
      }
    }
    store_element(dx, i, sum);
  });
}

template <class Y, class X>
__global__ void adaptive_average_pool2d_forward_kernel(Y* y, const X* x, ImageSizes output, ImageSizes input,
                                                       int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const ImagePlace place(output, i);
    const PooledRange down(place.y, output.h, input.h);
    const PooledRange across(place.x, output.w, input.w);
    float sum = 0.0F;
    for (int64_t h = down.begin; h < down.end; ++h)
      for (int64_t w = across.begin; w < across.end; ++w) sum += load_element(x, input.at(place.n, h, w, place.c));
    store_element(y, i, sum / static_cast<float>(down.size() * across.size()));
  });
}

/// Backward: dx = sum of dy / (pixels averaged) over the outputs that average this element.
template <class T>
__global__ void adaptive_average_pool2d_backward_kernel(T* dx, const T* dy, ImageSizes input, ImageSizes output,
                                                        int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const ImagePlace place(input, i);
    float sum = 0.0F;
    for (int64_t p = 0; p < output.h; ++p) {
      const PooledRange down(p, output.h, input.h);
      if (place.y < down.begin || place.y >= down.end) continue;
      for (int64_t q = 0; q < output.w; ++q) {
        const PooledRange across(q, output.w, input.w);
        if (place.x < across.begin || place.x >= across.end) continue;
        sum += load_element(dy, output.at(place.n, p, q, place.c)) / static_cast<float>(down.size() * across.size());
      }
    }
    store_element(dx, i, sum);
  });
}

/// Transposition y[n, column, row] = x[n, row, column]: flattens x[n, pixel, c], and its inverse
/// maps the gradient back. Block (x, y) owns 256 elements of the images y, y + gridDim.y, and so
/// on. Indices inside an image have 32 bits.
template <class Y, class X>
__global__ void transpose_kernel(Y* y, const X* x, int rows, int columns, int64_t images) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= rows * columns) return;
  const int column = i / rows, row = i - column * rows;
  for (int64_t n = blockIdx.y; n < images; n += gridDim.y) {
    const int64_t image = n * rows * columns;
    store_element(y + image, i, load_element(x + image, row * columns + column));
  }
}

/// Grid of transpose_kernel. Throws ShapeError for images with too many elements.
Grid flatten_grid(const Shape& x) {
  constexpr int64_t threads = 256, most_images = 65535;
  const int64_t elements = x.inner_elements();
  if (elements > std::numeric_limits<int32_t>::max() - threads)
    fail<ShapeError>("images of {} have too many elements to be flattened", to_string(x));
  return {dim3(static_cast<unsigned>(ceil_div(elements, threads)), static_cast<unsigned>(std::min(x[0], most_images))),
          threads};
}

HalfPooling half_pooling_of(const Shape& y, const Shape& x) {
  const auto narrow = [](int64_t size) { return static_cast<unsigned>(size); };
  return {narrow(x[1]), narrow(x[2]), narrow(y[1]), narrow(y[2]), narrow(x[3] / 8)};
}

ImageSizes sizes_of(const Shape& nhwc) { return {nhwc[1], nhwc[2], nhwc[3]}; }

}  // namespace

namespace cuda {

void half_max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Stream& stream) {
  const int64_t threads = y.elements() / 8;
  launch("max_pool2d_forward", moves({y, x}), grid_for(threads, half_pooling_threads), stream,
         half_max_pool2d_forward_kernel, static_cast<uint4*>(y.data()), reinterpret_cast<uint2*>(argmax.data()),
         static_cast<const uint4*>(x.data()), half_pooling_of(y.shape(), x.shape()), static_cast<unsigned>(threads));
}

void half_max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                              const GradientStore& store, Stream& stream) {
  const HalfPooling sizes = half_pooling_of(dy.shape(), dx.shape());
  const int64_t threads = dx.size(0) * ((dx.size(1) + 1) / 2) * ((dx.size(2) + 1) / 2) * sizes.vectors;
  launch("max_pool2d_backward", moves({dx, dy}), grid_for(threads, half_pooling_threads), stream,
         half_max_pool2d_backward_kernel, half_gradient(dx, store), static_cast<const uint4*>(dy.data()),
         reinterpret_cast<const uint2*>(argmax.data()), sizes, static_cast<unsigned>(threads));
}

void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window, Stream& stream) {
  with_pointers(y, x, [&]<class Y, class X>(Y* to, const X* from) {
    launch("max_pool2d_forward", moves({y, x}), grid_for(y.elements()), stream, max_pool2d_forward_kernel<Y, X>, to,
           argmax.data(), from, sizes_of(y.shape()), sizes_of(x.shape()), window, y.elements());
  });
}

void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                         Stream& stream) {
  with_pointers_of_one(dx, dy, [&]<class T>(T* to, const T* from) {
    launch("max_pool2d_backward", moves({dx, dy}), grid_for(dx.elements()), stream, max_pool2d_backward_kernel<T>, to,
           from, argmax.data(), sizes_of(dx.shape()), sizes_of(dy.shape()), window, dx.elements());
  });
}

void adaptive_average_pool2d_forward(Activations y, ConstActivations x, Stream& stream) {
  with_pointers(y, x, [&]<class Y, class X>(Y* to, const X* from) {
    launch("adaptive_average_pool2d_forward", moves({y, x}), grid_for(y.elements()), stream,
           adaptive_average_pool2d_forward_kernel<Y, X>, to, from, sizes_of(y.shape()), sizes_of(x.shape()),
           y.elements());
  });
}

void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy, Stream& stream) {
  with_pointers_of_one(dx, dy, [&]<class T>(T* to, const T* from) {
    launch("adaptive_average_pool2d_backward", moves({dx, dy}), grid_for(dx.elements()), stream,
           adaptive_average_pool2d_backward_kernel<T>, to, from, sizes_of(dx.shape()), sizes_of(dy.shape()),
           dx.elements());
  });
}

void flatten_forward(Activations y, ConstActivations x, Stream& stream) {
  with_pointers(y, x, [&]<class Y, class X>(Y* to, const X* from) {
    launch("flatten_forward", moves({y, x}), flatten_grid(x.shape()), stream, transpose_kernel<Y, X>, to, from,
           static_cast<int>(x.size(1) * x.size(2)), static_cast<int>(x.size(3)), x.size(0));
  });
}

void flatten_backward(Activations dx, ConstActivations dy, Stream& stream) {
  with_pointers_of_one(dx, dy, [&]<class T>(T* to, const T* from) {
    launch("flatten_backward", moves({dx, dy}), flatten_grid(dx.shape()), stream, transpose_kernel<T, T>, to, from,
           static_cast<int>(dx.size(3)), static_cast<int>(dx.size(1) * dx.size(2)), dx.size(0));
  });
}

}  // namespace cuda
}  // namespace nibblenet
