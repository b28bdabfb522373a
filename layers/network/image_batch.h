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
  bool operator==(const ImageSize&) const = default;
};

/// What becomes of the images' bytes.
enum class ImageBytes : uint8_t {
  prepared,  ///< uploaded and prepared by the backend
  kept,      ///< uploaded for a folded network
  resident   ///< in the backend's memory already, and prepared from there
};

/// A batch of images in a backend's memory. If the backend can prepare images, it gets their bytes;
/// otherwise it gets images that the host has prepared.
class ImageBatch {
 public:
  /// Allocates room for `most` images. `size` is the size of every image; without it the host
  /// prepares. The backend prepares images in `precision`; the host prepares them in float32.
  ImageBatch(Backend& backend, const Preprocess& preprocess, int64_t most, Precision precision,
             std::optional<ImageSize> size, ImageBytes bytes = ImageBytes::prepared);

  /// Whether upload() takes bytes; otherwise the host prepares images.
  bool takes_bytes() const { return pixels_.size() > 0; }
  /// Uploads bytes [N, height, width, 3] and, if they are to be prepared, N augmentations. The view
  /// is valid until the next call.
  TensorView<const uint8_t> upload(TensorView<const uint8_t> pixels, std::span<const Augmentation> augmentations);
  /// Prepares the uploaded bytes on the backend. The result is valid until the next call.
  ConstActivations prepare();
  /// Prepares bytes [N, height, width, 3] that are resident, as they are. The result is valid until
  /// the next call.
  /// Requires: a backend that can, ImageBytes::resident and a size.
  ConstActivations prepare(TensorView<const uint8_t> pixels);

  /// Uploads images [N, crop, crop, 3] that the host has prepared. The result is valid until the
  /// next call.
  ConstActivations upload(TensorView<const float> images);
  /// Room for the host to prepare images in, [most, crop, crop, 3]. upload() copies nothing from it
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
