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

BatchPreparer::BatchPreparer(Backend& backend, int image_size, int64_t batch, Precision precision)
    : backend_(backend),
      shape_(prepared_shape(batch, image_size)),
      precision_(precision),
      on_device_(backend.make_image_preparer(small_image_tables(image_size))) {
  if (!on_device_) precision_ = Precision::float32;
  prepared_ = {backend, static_cast<size_t>(shape_.elements()) * bytes_of(precision_), MemoryCategory::data};
  if (on_device_) {
    const std::vector<Augmentation> none(static_cast<size_t>(batch));
    augmentations_ = Tensor<Augmentation>(backend, {batch}, MemoryCategory::data);
    backend.copy_from_host(augmentations_.data(), none.data(), none.size() * sizeof(Augmentation));
    return;
  }
  for (int thread = 0; thread < omp_get_max_threads(); ++thread)
    on_host_.emplace_back(Preprocess::for_image_size(image_size));
  if (backend.device_memory()) staging_ = Tensor<float>(host_memory(), shape_, MemoryCategory::data);
}

ConstActivations BatchPreparer::run(TensorView<const uint8_t> images, TensorView<const uint8_t> host) {
  const Activations prepared(prepared_.data(), shape_, precision_);
  if (on_device_)
    on_device_->run(prepared, images, std::as_const(augmentations_).view());
  else
    prepare_on_host(host);
  return prepared;
}

void BatchPreparer::prepare_on_host(TensorView<const uint8_t> host) {
  const bool is_staged = !staging_.empty();
  float* to = is_staged ? staging_.data() : reinterpret_cast<float*>(prepared_.data());
  const int64_t pixels = shape_.inner_elements(), bytes = host.shape().inner_elements();
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < shape_[0]; ++n)
    on_host_[static_cast<size_t>(omp_get_thread_num())].run(host.data() + n * bytes, small_size, small_size, false,
                                                            to + n * pixels);
  if (is_staged) backend_.copy_from_host(prepared_.data(), to, prepared_.bytes());
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
    if (network.precision() == Precision::float32) return;
    fp16_ = {backend, static_cast<size_t>(images_.elements()), MemoryCategory::data};
    const TensorView<f16> fp16(fp16_.data(), images_.shape());
    backend.convert(fp16, input_);
    input_ = fp16;
    return;
  }
  host_bytes_ = Tensor<uint8_t>(host_memory(), {batch, small_size, small_size, 3}, MemoryCategory::data);
  Random random(1);
  for (uint8_t& value : host_bytes_.view()) value = static_cast<uint8_t>(random.below(256));
  bytes_ = Tensor<uint8_t>(backend, host_bytes_.shape(), MemoryCategory::data);
  backend.copy_from_host(bytes_.data(), host_bytes_.data(), host_bytes_.view().span().size_bytes());
  if (!network.folded()) preparer_.emplace(backend, image_size, batch, network.precision());
}

TensorView<const float> TimedForward::forward() {
  if (task_ == Task::t224) return pass_.forward(input_);
  if (!preparer_) return pass_.forward(std::as_const(bytes_).view());
  return pass_.forward(preparer_->run(std::as_const(bytes_).view(), std::as_const(host_bytes_).view()));
}

double TimedForward::once() {
  const Stopwatch watch;
  const auto output = forward();
  network_.backend().copy_to_host(logits_.data(), output.data(), output.span().size_bytes());
  return watch.milliseconds();
}

}  // namespace nibblenet::tools
