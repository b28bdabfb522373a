#pragma once

#include <memory>
#include <optional>
#include <span>

#include "engine/io/augmentation.h"
#include "engine/io/preprocess.h"
#include "kernels/backend.h"

namespace nibblenet {

/// Width and height of an image in pixels.
struct ImageSize {
  int width = 0;
  int height = 0;
};

/// What becomes of images' bytes in the backend's memory.
enum class ImageBytes : uint8_t { prepared, kept };

/// A batch of images in a backend's memory. Their bytes are uploaded and prepared there if the
/// backend can do so; otherwise images that the host has prepared are uploaded.
class ImageBatch {
 public:
  /// Room for `most` images. `size` is that of all their bytes; without it the host prepares.
  /// `precision` is wanted of images that the backend prepares; those of the host are float32.
  ImageBatch(Backend& backend, const Preprocess& preprocess, int64_t most, Precision precision,
             std::optional<ImageSize> size, ImageBytes bytes = ImageBytes::prepared);

  /// Whether upload() takes bytes. Otherwise the host prepares.
  bool takes_bytes() const { return pixels_.size() > 0; }
  /// Uploads bytes [N, height, width, 3] and, if they are to be prepared, N augmentations. The view
  /// is valid until the next call.
  TensorView<const uint8_t> upload(TensorView<const uint8_t> pixels, std::span<const Augmentation> augmentations);
  /// The uploaded bytes, prepared by the backend; valid until the next call.
  ConstActivations prepare();

  /// Uploads images [N, crop, crop, 3] that the host has prepared; valid until the next call.
  ConstActivations upload(TensorView<const float> images);
  /// Where the host may prepare images, [most, crop, crop, 3]: from there upload() need not copy
  /// if the backend's memory is the host's.
  TensorView<float> host_images();

 private:
  Backend& backend_;
  Shape shape_;  ///< [most, crop, crop, 3]
  Precision precision_;
  std::unique_ptr<ImagePreparer> preparer_;  ///< null: bytes are kept, or the host prepares
  Buffer<uint8_t> pixels_;
  TensorView<const uint8_t> uploaded_;
  Buffer<Augmentation> augmentations_;
  Buffer<std::byte> prepared_;
  Tensor<float> staging_;  ///< host_images() of a backend whose memory is its own
};

}  // namespace nibblenet
