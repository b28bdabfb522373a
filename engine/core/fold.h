#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/core/resample.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// One direction of a folded convolution: the source pixels of each output, and its pattern of
/// weights. Outputs share a pattern if their windows cover the source pixels in the same way.
/// Border outputs have patterns of their own.
struct FoldedAxis {
  int taps = 0;                  ///< most source pixels of one output
  int patterns = 0;              ///< number of different patterns
  std::vector<int32_t> first;    ///< [outputs] source pixel of tap 0: first + taps never leaves the image
  std::vector<int32_t> pattern;  ///< [outputs]
};

/// A first convolution with the enlargement and normalisation of its images folded in. The three
/// together are one linear map of the image's bytes: a convolution of the small image. Its filters
/// depend on where the output's window lies over the source pixels. For 32 x 32 images, enlarged to
/// 256 and cropped to 224, AlexNet's first convolution has 4 x 4 patterns of 4 x 4 source pixels.
/// That takes 9.3 million multiplications instead of 70.3 million.
///
///   y[n, p, q, k] = biases[s, k] + sum over a, b, c of
///                   filters[s, a, b, c, k] *
///                   (image[n, vertical.first[p] + a, horizontal.first[q] + b, c] - center[c])
///   with s = vertical.pattern[p] * horizontal.patterns + horizontal.pattern[q]
///
/// Padding is exact: filters and biases leave out the taps that lie in it. PIL rounds the enlarged
/// image to bytes twice; a linear map cannot reproduce that.
struct FoldedConvolution {
  int width = 0;  ///< of the images
  int height = 0;
  int64_t channels_out = 0;  ///< K
  FoldedAxis vertical;
  FoldedAxis horizontal;
  /// The mean as a byte. A pixel minus this mean is a small integer, which float16 holds exactly.
  std::array<int32_t, 3> center{};
  std::vector<float> filters;  ///< [patterns, vertical.taps, horizontal.taps, 3, K]
  std::vector<float> biases;   ///< [patterns, K]

  int64_t patterns() const { return int64_t{vertical.patterns} * horizontal.patterns; }
  /// Weights of one channel's filter, for one pattern.
  int64_t length() const { return int64_t{vertical.taps} * horizontal.taps * 3; }
  int64_t rows() const { return static_cast<int64_t>(vertical.first.size()); }       ///< P
  int64_t columns() const { return static_cast<int64_t>(horizontal.first.size()); }  ///< Q
};

/// Folds filters w[K, 3, R, R] and bias[K] of a convolution with the image preparation of `tables`.
/// Sums are taken in double. Throws ShapeError if shapes do not fit. Throws UsageError if folding
/// saves nothing: images are hardly enlarged, or there would be more than 256 patterns.
FoldedConvolution fold_convolution(TensorView<const float> w, TensorView<const float> bias, int64_t stride,
                                   int64_t padding, const ResampleTables& tables);

}  // namespace nibblenet
