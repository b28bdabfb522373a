#pragma once

// Declarations that both files of the stand-in for cuDNN share.

#include <cuda_fp16.h>
#include <cudnn.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "tests/hostexec/fake_stream.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};
struct cudnnTensorStruct {
  cudnnDataType_t type;
  int sizes[4];    // N, C, H, W
  int strides[4];  // in elements
};
struct cudnnFilterStruct {
  cudnnDataType_t type;
  int k, c, r, s;
};
struct cudnnConvolutionStruct {
  int padding, stride;
  cudnnMathType_t math;
};
struct cudnnActivationStruct {
  cudnnActivationMode_t mode;
};
struct cudnnPoolingStruct {
  int size, padding, stride;
};

namespace fake_cudnn {

/// Algorithms of every direction, by how they behave.
enum Algorithm {
  refuses_identity = 0,
  runs = 1,
  refuses_everything = 2,
  differs_from_run_to_run = 3,  ///< and is slow
  refuses_graphs = 4
};
/// Convolutions of this stride have no forward algorithm that a graph can hold.
constexpr int stride_of_no_graph = 7;
/// Convolutions of this stride have slow algorithms only; their graphs are fast.
constexpr int stride_of_slow_algorithms = 5;

/// Whether a forward convolution of these images fails: FAKE_CUDNN_FAILS names a batch size.
inline bool fails(const cudnnTensorStruct& x) {
  const char* batch = std::getenv("FAKE_CUDNN_FAILS");
  return batch != nullptr && x.sizes[0] == std::atoi(batch);
}

/// Counts a slow run, and takes a while.
void be_slow();

inline float load(cudnnDataType_t type, const void* data, int64_t i) {
  return type == CUDNN_DATA_FLOAT ? static_cast<const float*>(data)[i]
                                  : __half2float(static_cast<const __half*>(data)[i]);
}
inline void store(cudnnDataType_t type, void* data, int64_t i, float value) {
  if (type == CUDNN_DATA_FLOAT)
    static_cast<float*>(data)[i] = value;
  else
    static_cast<__half*>(data)[i] = __float2half(value);
}

inline int64_t at(const cudnnTensorStruct& t, int n, int c, int h, int w) {
  return int64_t{n} * t.strides[0] + int64_t{c} * t.strides[1] + int64_t{h} * t.strides[2] + int64_t{w} * t.strides[3];
}
/// Filters lie as [K, R, S, C].
inline int64_t at(const cudnnFilterStruct& f, int k, int c, int r, int s) {
  return ((int64_t{k} * f.r + r) * f.s + s) * f.c + c;
}

template <class Use>
void for_each(const cudnnTensorStruct& t, Use use) {
  for (int n = 0; n < t.sizes[0]; ++n)
    for (int c = 0; c < t.sizes[1]; ++c)
      for (int h = 0; h < t.sizes[2]; ++h)
        for (int w = 0; w < t.sizes[3]; ++w) use(n, c, h, w);
}

inline bool fit(const cudnnTensorStruct& x, const cudnnFilterStruct& f, const cudnnConvolutionStruct& conv,
                const cudnnTensorStruct& y) {
  const auto output = [&](int in, int size) { return (in + 2 * conv.padding - size) / conv.stride + 1; };
  return x.type == f.type && x.type == y.type && x.sizes[0] == y.sizes[0] && x.sizes[1] == f.c && y.sizes[1] == f.k &&
         y.sizes[2] == output(x.sizes[2], f.r) && y.sizes[3] == output(x.sizes[3], f.s);
}

/// y = activation(factor conv(x, w) + bias)
struct FusedConvolution {
  cudnnTensorStruct x_desc;
  cudnnFilterStruct w_desc;
  cudnnConvolutionStruct conv;
  cudnnTensorStruct y_desc;
  float factor;
  bool relu;

  void run(const void* x, const void* w, const void* bias, void* y) const {
    for_each(y_desc, [&](int n, int k, int p, int q) {
      float sum = 0;
      for (int c = 0; c < w_desc.c; ++c)
        for (int r = 0; r < w_desc.r; ++r)
          for (int s = 0; s < w_desc.s; ++s) {
            const int h = p * conv.stride + r - conv.padding, column = q * conv.stride + s - conv.padding;
            if (h < 0 || h >= x_desc.sizes[2] || column < 0 || column >= x_desc.sizes[3]) continue;
            sum += load(x_desc.type, x, at(x_desc, n, c, h, column)) * load(w_desc.type, w, at(w_desc, k, c, r, s));
          }
      float value = factor * sum + load(y_desc.type, bias, k);
      if (relu && !(value > 0)) value = std::isnan(value) ? value : 0.0F;
      store(y_desc.type, y, at(y_desc, n, k, p, q), value);
    });
  }
};

}  // namespace fake_cudnn
