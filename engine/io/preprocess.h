#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/core/resample.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// The preparation of an image for a network:
///  1. resize the shorter side to `resize`: bilinear with antialiasing, each pass rounded to 8
///     bits, the exact bytes of PIL;
///  2. crop the centre `crop` x `crop`;
///  3. divide by 255, subtract `mean`, divide by `deviation`: by default ImageNet's, which
///     torchvision's models were trained with.
struct Preprocess {
  int resize = 256;  ///< pixels
  int crop = 224;    ///< pixels
  std::array<float, 3> mean = {0.485F, 0.456F, 0.406F};
  std::array<float, 3> deviation = {0.229F, 0.224F, 0.225F};
  /// The preparation for an input of `size` pixels: resize = round(size * 256 / 224), but 32 for
  /// CIFAR-10's own size, 32. Throws UsageError unless 1 <= size <= max_size.
  static Preprocess for_image_size(int size);
  static constexpr int max_size = 1 << 14;
};

/// Tables of the preparation of images of width x height, which devices and Preprocessor run by.
/// Throws UsageError unless 1 <= crop <= resize <= 2 * max_size and the deviations are positive,
/// ShapeError when width or height is below 1.
ResampleTables make_resample_tables(const Preprocess& parameters, int width, int height);

/// Prepares images on the CPU. Reuses tables and scratch between calls; one object per thread.
class Preprocessor {
 public:
  /// Throws UsageError unless 1 <= crop <= resize <= 2 * max_size and the deviations are positive.
  explicit Preprocessor(const Preprocess& parameters);

  /// Prepares `image`, [height, width, 3] bytes, into `out`, [crop, crop, 3]. `flip` mirrors it
  /// left to right. Throws ShapeError when width or height is below 1.
  void run(const uint8_t* image, int width, int height, bool flip, float* out);

 private:
  void prepare(int width, int height);
  void resize_rows(const uint8_t* image, bool flip);
  void write_row(int y, float* out);

  Preprocess parameters_;
  ResampleTables tables_;      ///< for the size of the image that came last
  int first_row_ = 0;          ///< source rows first_row_ … are resized horizontally
  std::vector<uint8_t> rows_;  ///< [needed source rows, crop, 3]
  std::vector<int32_t> sums_;  ///< [crop, 3], one output row before rounding
};

}  // namespace nibblenet
