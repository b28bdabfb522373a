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

/// The most images of a batch that are this process's.
int64_t most_of(const BlockShare& share, int64_t batch_size, const Dataset& dataset) {
  const int64_t batch = std::min(batch_size, dataset.size());
  if (share.block == 0) return batch;
  return std::min(batch, (share.blocks_of(batch) + share.ranks - 1) / share.ranks * share.block);
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
    : images_(backend, preprocess, std::max<int64_t>(1, most_of(options.share, options.batch_size, dataset)), precision,
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
