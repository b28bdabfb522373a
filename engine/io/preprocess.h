#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "engine/core/resample.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// What happens to an image before the network: resize the shorter side to `resize` (bilinear with
/// antialiasing, each pass rounded to 8 bits, exactly as PIL does), crop the centre `crop` x
/// `crop`, divide by 255, subtract the mean and divide by the standard deviation of ImageNet (the
/// values torchvision's models were trained with).
struct Preprocess {
  int resize = 256;
  int crop = 224;
  std::array<float, 3> mean = {0.485F, 0.456F, 0.406F};
  std::array<float, 3> deviation = {0.229F, 0.224F, 0.225F};
  /// The proportions of the default for another input size: resize = round(size * 256 / 224).
  /// CIFAR-10's own size, 32, is taken as it is: resize = 32.
  /// Throws UsageError unless 1 <= size <= max_size.
  static Preprocess for_image_size(int size);
  static constexpr int max_size = 1 << 14;
};

/// What the preprocessing of images of one size comes down to, for whoever runs it elsewhere.
/// Throws UsageError for parameters that make no sense, ShapeError when width or height is below 1.
ResampleTables make_resample_tables(const Preprocess& parameters, int width, int height);

/// Writes one image as crop x crop x 3 floats, channels last (HWC). `flip` mirrors it left to
/// right. `image` is rows of RGB. Reuses tables and scratch between calls; one object per thread.
class Preprocessor {
 public:
  /// Throws UsageError unless 1 <= crop <= resize <= 2 * max_size and the deviations are positive.
  explicit Preprocessor(const Preprocess& parameters);
  ~Preprocessor();
  Preprocessor(Preprocessor&&) noexcept;
  Preprocessor& operator=(Preprocessor&&) noexcept;

  /// Throws ShapeError when width or height is below 1.
  void run(const uint8_t* image, int width, int height, bool flip, float* out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibblenet
