#pragma once

#include <memory>

#include "engine/io/loader.h"
#include "layers/network/image_batch.h"

namespace nibblenet {

/// Tables that prepare images of this data set's size. Throws UsageError unless all have one size.
ResampleTables tables_of_all(const Dataset& dataset, const Preprocess& preprocess);

/// Batches of a data set's images in a backend's memory. The backend prepares them if it can and
/// all images have one size; otherwise the loader's thread does.
class ImageFeed {
 public:
  /// The backend prepares images in `precision`; the host prepares them in float32. With
  /// options.raw nobody prepares them: use next(…, pixels).
  ImageFeed(Backend& backend, const Dataset& dataset, const Preprocess& preprocess, LoaderOptions options,
            Precision precision);

  /// Loader::next with prepared images, valid until the next call.
  bool next(Batch& batch, ConstActivations& images);
  /// Loader::next with the images' bytes, [N, height, width, 3].
  bool next(Batch& batch, TensorView<const uint8_t>& pixels);
  const Loader& loader() const { return *loader_; }

 private:
  ImageBatch images_;
  std::unique_ptr<Loader> loader_;
};

}  // namespace nibblenet
