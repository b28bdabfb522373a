#pragma once

#include <memory>

#include "engine/core/fold.h"
#include "engine/core/resample.h"
#include "engine/quant/size.h"
#include "kernels/activations.h"
#include "kernels/shapes.h"

namespace nibblenet {

struct Augmentation;  // engine/io/augmentation.h

/// Preparation of images of one size (engine/io/preprocess.h) by a backend.
class ImagePreparer {
 public:
  virtual ~ImagePreparer() = default;
  /// x[N, crop, crop, 3] from images[N, height, width, 3] and augmentations[N], all in the
  /// backend's memory.
  virtual void run(Activations x, TensorView<const uint8_t> images, TensorView<const Augmentation> augmentations) = 0;
};

/// A convolution folded with the preparation of its images (engine/core/fold.h), in a backend's
/// memory.
class FoldedConv2d {
 public:
  virtual ~FoldedConv2d() = default;
  /// y[N, P, Q, K] = epilogue(convolution of images[N, height, width, 3]), whose bytes lie in the
  /// backend's memory.
  virtual void run(Activations y, TensorView<const uint8_t> images, Epilogue epilogue) = 0;
  /// Bytes of the filters, of the tables that select an output's filter, and of the biases.
  virtual ResidentSize resident() const = 0;
};

/// Preparation of images on the device. A backend without it overrides nothing.
class ImagePreparation {
 public:
  virtual ~ImagePreparation() = default;
  /// Returns null when the host has to prepare images.
  virtual std::unique_ptr<ImagePreparer> make_image_preparer(const ResampleTables&) { return nullptr; }
  /// Makes a folded convolution with filters and outputs in `precision`. Throws UsageError when the
  /// backend has none.
  virtual std::unique_ptr<FoldedConv2d> make_folded_conv2d(const FoldedConvolution&, Precision) {
    throw UsageError("this device does not fold the first convolution with the resize; leave --fold-first out");
  }
};

}  // namespace nibblenet
