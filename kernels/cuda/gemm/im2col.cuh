#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/gemm/convolution_sizes.h"

// im2col: images as matrices, the operands of convolutions as products (implicit GEMM). Elements
// are computed from the index; no matrix is stored. A row of x's matrix holds the R S C elements
// that one output pixel reads, tap by tap, channels innermost. Elements in the padding are 0.

namespace nibblenet {

/// x [N, H, W, C] as a matrix [output pixels, R S C].
template <class T>
struct Windows {
  ConvolutionSizes sizes;
  const T* x;

  /// The window of an output pixel.
  struct Row {
    const T* image = nullptr;  ///< null: there is no such pixel
    int h = 0;                 ///< of the window's first row, may be in the padding
    int w = 0;
  };

  __device__ Row row(int pixel) const {
    if (pixel >= sizes.outputs()) return {};
    const int across = pixel / sizes.q;
    const int image = across / sizes.p;
    return row(image, across - image * sizes.p, pixel - across * sizes.q);
  }
  /// The window of the output pixel of an image in row p and column q.
  __device__ Row row(int image, int p, int q) const {
    return {x + static_cast<int64_t>(image) * sizes.h * sizes.w * sizes.c, p * sizes.stride - sizes.padding,
            q * sizes.stride - sizes.padding};
  }

  /// Address of element `channel` of tap `tap`, or null in the padding.
  __device__ const T* at(const Row& row, int tap, int channel) const {
    const int r = tap / sizes.size;
    const int h = row.h + r;
    const int w = row.w + tap - r * sizes.size;
    const bool inside = h >= 0 && h < sizes.h && w >= 0 && w < sizes.w;
    return inside ? row.image + (static_cast<int64_t>(h) * sizes.w + w) * sizes.c + channel : nullptr;
  }

  /// Loads elements [k, k + 8) of a row, with zeros outside.
  __device__ void load8(const Row& row, int k, float (&v)[8]) const {
    int tap = k / sizes.c;
    int channel = k - tap * sizes.c;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const T* element = row.image != nullptr && k + i < sizes.length() ? at(row, tap, channel) : nullptr;
      v[i] = element != nullptr ? load_element(element, 0) : 0.0F;
      if (++channel == sizes.c) {
        channel = 0;
        ++tap;
      }
    }
  }
};

/// dy [N, P, Q, K] as a matrix [input pixels, R S K]: the output gradients that reach an input
/// pixel through each tap.
template <class T>
struct Contributions {
  ConvolutionSizes sizes;
  const T* dy;

  struct Row {
    const T* image = nullptr;  ///< null: there is no such pixel
    int h = 0;                 ///< of the input pixel, counted from the padding's edge
    int w = 0;
  };

  __device__ Row row(int pixel) const {
    if (pixel >= sizes.inputs()) return {};
    const int across = pixel / sizes.w;
    const int image = across / sizes.h;
    return {dy + static_cast<int64_t>(image) * sizes.p * sizes.q * sizes.k, across - image * sizes.h + sizes.padding,
            pixel - across * sizes.w + sizes.padding};
  }

  /// Address of the gradient that filter `filter` sends through tap `tap`, or null if there is
  /// none.
  __device__ const T* at(const Row& row, int tap, int filter) const {
    const int r = tap / sizes.size;
    const int down = row.h - r;
    const int across = row.w - (tap - r * sizes.size);
    const int p = down / sizes.stride;
    const int q = across / sizes.stride;
    const bool inside = down >= 0 && across >= 0 && p * sizes.stride == down && q * sizes.stride == across &&
                        p < sizes.p && q < sizes.q;
    return inside ? row.image + (static_cast<int64_t>(p) * sizes.q + q) * sizes.k + filter : nullptr;
  }

  __device__ void load8(const Row& row, int k, float (&v)[8]) const {
    int tap = k / sizes.k;
    int filter = k - tap * sizes.k;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const T* element = row.image != nullptr && tap < sizes.taps() ? at(row, tap, filter) : nullptr;
      v[i] = element != nullptr ? load_element(element, 0) : 0.0F;
      if (++filter == sizes.k) {
        filter = 0;
        ++tap;
      }
    }
  }
};

}  // namespace nibblenet
