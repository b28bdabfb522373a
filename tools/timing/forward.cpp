#include "tools/timing/forward.h"

#include <omp.h>

#include "engine/core/random.h"
#include "tools/timing/sampling.h"

namespace nibblenet::tools {
namespace {

Shape prepared_shape(int64_t batch, int64_t image_size) { return {batch, image_size, image_size, 3}; }

}  // namespace

ResampleTables small_image_tables(int image_size) {
  return make_resample_tables(Preprocess::for_image_size(image_size), small_size, small_size);
}

TimedForward::TimedForward(Network& network, int image_size, Task task, int64_t batch)
    : network_(network),
      task_(task),
      pass_(network, 0, network.layers().size(), prepared_shape(batch, image_size), Pass::Mode::inference),
      logits_(static_cast<size_t>(batch * network.classes())) {
  Backend& backend = network.backend();
  if (task == Task::t224) {
    images_ = Tensor<float>(backend, prepared_shape(batch, image_size), MemoryCategory::data);
    const std::vector<float> values = random_values(images_.elements(), -2, 2);
    backend.copy_from_host(images_.data(), values.data(), sizeof(float) * values.size());
    input_ = std::as_const(images_).view();
    if (network.storage() == Precision::float32) return;
    fp16_ = {backend, static_cast<size_t>(images_.elements()), MemoryCategory::data};
    const TensorView<f16> fp16(fp16_.data(), images_.shape());
    backend.convert(fp16, input_);
    input_ = fp16;
    return;
  }
  host_bytes_ = Tensor<uint8_t>(host_memory(), {batch, small_size, small_size, 3}, MemoryCategory::data);
  Random random(1);
  for (uint8_t& value : host_bytes_.view()) value = static_cast<uint8_t>(random.below(256));
  const Preprocess preprocess = Preprocess::for_image_size(static_cast<int>(image_size));
  batch_.emplace(backend, preprocess, batch, network.storage(), ImageSize{small_size, small_size},
                 network.folded() ? ImageBytes::kept : ImageBytes::prepared);
  if (batch_->takes_bytes()) {
    const std::vector<Augmentation> none(static_cast<size_t>(batch));
    bytes_ = batch_->upload(std::as_const(host_bytes_).view(), none);
    return;
  }
  for (int thread = 0; thread < omp_get_max_threads(); ++thread) on_host_.emplace_back(preprocess);
}

std::unique_ptr<Recording> TimedForward::record_layers(size_t end) {
  if (task_ != Task::t224) return nullptr;
  forward();
  return pass_.record_layers(input_, end);
}

TensorView<const float> TimedForward::forward() {
  if (task_ == Task::t224) return pass_.forward(input_);
  if (network_.folded()) return pass_.forward(bytes_);
  return pass_.forward(batch_->takes_bytes() ? batch_->prepare() : prepare_on_host());
}

ConstActivations TimedForward::prepare_on_host() {
  const TensorView<float> images = batch_->host_images();
  const int64_t bytes = host_bytes_.shape().inner_elements();
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < images.size(0); ++n)
    on_host_[static_cast<size_t>(omp_get_thread_num())].run(host_bytes_.data() + n * bytes, small_size, small_size,
                                                            false, images.slice(n, 1).data());
  return batch_->upload(images);
}

double TimedForward::once() {
  const Stopwatch watch;
  const auto output = forward();
  network_.backend().copy_to_host(logits_.data(), output.data(), output.span().size_bytes());
  return watch.milliseconds();
}

}  // namespace nibblenet::tools
