#include "layers/network/image_feed.h"

#include <algorithm>
#include <functional>

namespace nibblenet {
namespace {

/// The size that all images have; nothing if they differ or there are none.
std::optional<ImageSize> common_size(const Dataset& dataset) {
  const auto size_of = [](const Dataset::Image& image) { return std::pair(image.width, image.height); };
  if (dataset.size() == 0 ||
      std::ranges::adjacent_find(dataset.images, std::not_equal_to(), size_of) != dataset.images.end())
    return std::nullopt;
  return ImageSize{dataset.images[0].width, dataset.images[0].height};
}

}  // namespace

ResampleTables tables_of_all(const Dataset& dataset, const Preprocess& preprocess) {
  const std::optional<ImageSize> size = common_size(dataset);
  if (!size)
    throw UsageError(
        "folding the first convolution needs images of one size, and these differ; leave --fold-first out");
  return make_resample_tables(preprocess, size->width, size->height);
}

ImageFeed::ImageFeed(Backend& backend, const Dataset& dataset, const Preprocess& preprocess, LoaderOptions options,
                     Precision precision)
    : images_(backend, preprocess, std::max<int64_t>(1, std::min(options.batch_size, dataset.size())), precision,
              common_size(dataset), options.raw ? ImageBytes::kept : ImageBytes::prepared) {
  options.raw = options.raw || images_.takes_bytes();
  loader_ = std::make_unique<Loader>(dataset, preprocess, options);
}

bool ImageFeed::next(Batch& batch, ConstActivations& images) {
  if (!loader_->next(batch)) return false;
  if (images_.takes_bytes()) {
    images_.upload(batch.pixels, batch.augmentations);
    images = images_.prepare();
  } else {
    images = images_.upload(batch.images);
  }
  return true;
}

bool ImageFeed::next(Batch& batch, TensorView<const uint8_t>& pixels) {
  if (!loader_->next(batch)) return false;
  pixels = images_.upload(batch.pixels, {});
  return true;
}

}  // namespace nibblenet
