#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/core/resample.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// One direction of a folded convolution: which source pixels each output meets, and by which pattern of weights.
/// Outputs whose windows lie alike over the source pixels share a pattern; those at the borders have their own.
struct FoldedAxis {
  int taps = 0;                  ///< source pixels that an output meets at most
  int patterns = 0;              ///< different ones
  std::vector<int32_t> first;    ///< [outputs] source pixel of tap 0: first + taps never leaves the image
  std::vector<int32_t> pattern;  ///< [outputs]
};

/// Enlarging an image, normalising it and convolving it is one linear map of the image's bytes: a convolution of the
/// small image itself, with filters that depend on how the output's window lies over the source pixels. For 32 x 32
/// images enlarged to 256 and cropped to 224, and AlexNet's first convolution, there are 4 x 4 patterns of 4 x 4 source
/// pixels: 9.3 million multiplications instead of 70.3.
///
///   y[n, p, q, k] = biases[s, k] + sum over a, b, c of
///                   filters[s, a, b, c, k] (image[n, vertical.first[p] + a, horizontal.first[q] + b, c] - center[c])
///   with s = vertical.pattern[p] * horizontal.patterns + horizontal.pattern[q]
///
/// Padding is exact: taps of the convolution that lie in it have no part in filters and biases. What no linear map can
/// follow is that PIL rounds the enlarged image to bytes, twice.
struct FoldedConvolution {
  int width = 0;  ///< of the images
  int height = 0;
  int64_t channels_out = 0;  ///< K
  FoldedAxis vertical;
  FoldedAxis horizontal;
  /// The mean as a byte: what is left of a pixel is a small integer, which float16 holds exactly.
  std::array<int32_t, 3> center{};
  std::vector<float> filters;  ///< [patterns, vertical.taps, horizontal.taps, 3, K]
  std::vector<float> biases;   ///< [patterns, K]

  int64_t patterns() const { return int64_t{vertical.patterns} * horizontal.patterns; }
  /// Of one pattern: weights that a channel's filter has.
  int64_t length() const { return int64_t{vertical.taps} * horizontal.taps * 3; }
  int64_t rows() const { return static_cast<int64_t>(vertical.first.size()); }       ///< P
  int64_t columns() const { return static_cast<int64_t>(horizontal.first.size()); }  ///< Q
};

/// Filters w[K, 3, R, R] and bias[K] of a convolution behind the preparation of images that `tables` describe, folded
/// with it; sums in double. Throws ShapeError when they do not fit, UsageError where folding saves nothing: for images
/// that are hardly enlarged, or so oddly that there would be more than 256 patterns.
FoldedConvolution fold_convolution(TensorView<const float> w, TensorView<const float> bias, int64_t stride,
                                   int64_t padding, const ResampleTables& tables);

}  // namespace nibblenet
