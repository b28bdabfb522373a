#pragma once

#include <memory>
#include <vector>

#include "engine/io/loader.h"
#include "kernels/backend.h"

namespace nibblenet {

/// Tables that prepare images of this data set's size. Throws UsageError unless all have one size.
ResampleTables tables_of_all(const Dataset& dataset, const Preprocess& preprocess);

/// Batches of prepared images in a backend's memory. If the backend can prepare images and all have
/// one size, their bytes are uploaded and the backend prepares them. Otherwise the loader's thread
/// does.
class ImageFeed {
 public:
  /// `precision`: wanted precision of the images; images prepared on the host are float32. With
  /// options.raw they are not prepared: use next(…, pixels).
  ImageFeed(Backend& backend, const Dataset& dataset, const Preprocess& preprocess, LoaderOptions options,
            Precision precision);

  /// Loader::next with prepared images, valid until the next call.
  bool next(Batch& batch, ConstActivations& images);
  /// Loader::next with the images' bytes, [N, height, width, 3].
  bool next(Batch& batch, TensorView<const uint8_t>& pixels);
  const Loader& loader() const { return *loader_; }

 private:
  Backend& backend_;
  int64_t crop_;
  Precision precision_;
  std::unique_ptr<ImagePreparer> preparer_;  ///< null: the loader prepares
  std::unique_ptr<Loader> loader_;
  Buffer<uint8_t> pixels_;  ///< a batch's bytes as in the data set; with a preparer, or raw
  Buffer<Augmentation> augmentations_;
  Buffer<std::byte> prepared_;
};

}  // namespace nibblenet
