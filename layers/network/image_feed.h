#pragma once

#include <memory>
#include <vector>

#include "engine/io/loader.h"
#include "kernels/backend.h"

namespace nibblenet {

/// How images of this data set's size are prepared. Throws UsageError unless all of them have one size.
ResampleTables tables_of_all(const Dataset& dataset, const Preprocess& preprocess);

/// Batches of prepared images in a backend's memory: a Loader, and whoever prepares its images. Where the backend can
/// and all images have one size, their bytes travel and it prepares them itself; else the loader's thread does.
class ImageFeed {
 public:
  /// `precision` is what the images are wanted in; prepared on the host they are float32. With options.raw they are
  /// not prepared: for next(…, pixels).
  ImageFeed(Backend& backend, const Dataset& dataset, const Preprocess& preprocess, LoaderOptions options,
            Precision precision);

  /// As Loader::next; `images` is valid until the next call.
  bool next(Batch& batch, ConstActivations& images);
  /// The same with the images' bytes, [N, height, width, 3].
  bool next(Batch& batch, TensorView<const uint8_t>& pixels);
  const Loader& loader() const { return *loader_; }

 private:
  Backend& backend_;
  int64_t crop_;
  Precision precision_;
  std::unique_ptr<ImagePreparer> preparer_;  ///< null: the loader prepares
  std::unique_ptr<Loader> loader_;
  Buffer<uint8_t> pixels_;  ///< with a preparer, or raw: of a batch, as they lie in the data set
  Buffer<Augmentation> augmentations_;
  Buffer<std::byte> prepared_;
};

}  // namespace nibblenet
