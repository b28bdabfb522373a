#include "layers/network/image_batch.h"

namespace nibblenet {

ImageBatch::ImageBatch(Backend& backend, const Preprocess& preprocess, int64_t most, Precision precision,
                       std::optional<ImageSize> size, ImageBytes bytes)
    : backend_(backend), shape_{most, preprocess.crop, preprocess.crop, 3}, precision_(precision) {
  const bool kept = bytes == ImageBytes::kept;
  const auto images = static_cast<size_t>(most);
  if (size && !kept)
    preparer_ = backend.make_image_preparer(make_resample_tables(preprocess, size->width, size->height));
  const bool uploads = bytes != ImageBytes::resident;
  if (size && uploads && (kept || preparer_))
    pixels_ = {backend, images * static_cast<size_t>(size->width * size->height * 3), MemoryCategory::data};
  if (preparer_)
    augmentations_ = {backend, images, MemoryCategory::data};
  else
    precision_ = Precision::float32;
  if (!kept) prepared_ = {backend, static_cast<size_t>(shape_.elements()) * bytes_of(precision_), MemoryCategory::data};
  if (preparer_ && !uploads) {
    const std::vector<Augmentation> none(images);
    backend.copy_from_host(augmentations_.data(), none.data(), augmentations_.bytes());
  }
}

TensorView<const uint8_t> ImageBatch::upload(TensorView<const uint8_t> pixels,
                                             std::span<const Augmentation> augmentations) {
  backend_.copy_from_host(pixels_.data(), pixels.data(), pixels.span().size_bytes());
  if (preparer_) backend_.copy_from_host(augmentations_.data(), augmentations.data(), augmentations.size_bytes());
  return uploaded_ = {pixels_.data(), pixels.shape()};
}

ConstActivations ImageBatch::prepare(TensorView<const uint8_t> pixels) {
  uploaded_ = pixels;
  return prepare();
}

ConstActivations ImageBatch::prepare() {
  const int64_t images = uploaded_.size(0);
  const Activations prepared(prepared_.data(), {images, shape_[1], shape_[2], 3}, precision_);
  preparer_->run(prepared, uploaded_, {augmentations_.data(), {images}});
  return prepared;
}

ConstActivations ImageBatch::upload(TensorView<const float> images) {
  auto* to = reinterpret_cast<float*>(prepared_.data());
  if (images.data() != to) backend_.copy_from_host(to, images.data(), images.span().size_bytes());
  return TensorView<const float>(to, images.shape());
}

TensorView<float> ImageBatch::host_images() {
  if (!backend_.device_memory()) return {reinterpret_cast<float*>(prepared_.data()), shape_};
  if (staging_.empty()) staging_ = Tensor<float>(host_memory(), shape_, MemoryCategory::data);
  return staging_.view();
}

}  // namespace nibblenet
