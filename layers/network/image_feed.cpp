#include "layers/network/image_feed.h"

#include <algorithm>

namespace nibblenet {
namespace {

bool of_one_size(const Dataset& dataset) {
  return dataset.size() > 0 && std::ranges::all_of(dataset.images, [&](const Dataset::Image& image) {
           return image.width == dataset.images[0].width && image.height == dataset.images[0].height;
         });
}

}  // namespace

ResampleTables tables_of_all(const Dataset& dataset, const Preprocess& preprocess) {
  if (!of_one_size(dataset))
    throw UsageError(
        "folding the first convolution needs images of one size, and these differ; leave --fold-first out");
  return make_resample_tables(preprocess, dataset.images[0].width, dataset.images[0].height);
}

ImageFeed::ImageFeed(Backend& backend, const Dataset& dataset, const Preprocess& preprocess, LoaderOptions options,
                     Precision precision)
    : backend_(backend), crop_(preprocess.crop), precision_(precision) {
  const auto most = static_cast<size_t>(std::max<int64_t>(1, std::min(options.batch_size, dataset.size())));
  const bool raw = options.raw;
  if (of_one_size(dataset)) {
    const Dataset::Image& image = dataset.images[0];
    if (!raw) preparer_ = backend.make_image_preparer(make_resample_tables(preprocess, image.width, image.height));
    options.raw = raw || preparer_;
    if (options.raw)
      pixels_ = {backend, most * static_cast<size_t>(image.width * image.height * 3), MemoryCategory::data};
    if (preparer_) augmentations_ = {backend, most, MemoryCategory::data};
  }
  if (!preparer_) precision_ = Precision::float32;
  if (!raw)
    prepared_ = {backend, most * static_cast<size_t>(crop_ * crop_ * 3) * bytes_of(precision_), MemoryCategory::data};
  loader_ = std::make_unique<Loader>(dataset, preprocess, options);
}

bool ImageFeed::next(Batch& batch, ConstActivations& images) {
  if (!loader_->next(batch)) return false;
  const Activations prepared(prepared_.data(), {batch.size(), crop_, crop_, 3}, precision_);
  if (preparer_) {
    backend_.copy_from_host(pixels_.data(), batch.pixels.data(), batch.pixels.span().size_bytes());
    backend_.copy_from_host(augmentations_.data(), batch.augmentations.data(), batch.augmentations.size_bytes());
    preparer_->run(prepared, {pixels_.data(), batch.pixels.shape()}, {augmentations_.data(), {batch.size()}});
  } else {
    backend_.copy_from_host(prepared.data(), batch.images.data(), batch.images.span().size_bytes());
  }
  images = prepared;
  return true;
}

bool ImageFeed::next(Batch& batch, TensorView<const uint8_t>& pixels) {
  if (!loader_->next(batch)) return false;
  backend_.copy_from_host(pixels_.data(), batch.pixels.data(), batch.pixels.span().size_bytes());
  pixels = {pixels_.data(), batch.pixels.shape()};
  return true;
}

}  // namespace nibblenet
