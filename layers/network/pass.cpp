#include "layers/network/pass.h"

#include <algorithm>
#include <functional>

#include "layers/conv2d.h"
#include "layers/network/fusion.h"

namespace nibblenet {
namespace {

/// Where outputs of inference lie: two that alternate, and the features.
constexpr int64_t slots = 3;
constexpr size_t features_slot = 2;

Shape with_batch(const Shape& shape, int64_t batch) {
  std::array<int64_t, Shape::max_rank> sizes{};
  std::ranges::copy(shape.sizes(), sizes.begin());
  sizes[0] = batch;
  return Shape(std::span(sizes.data(), static_cast<size_t>(shape.rank())));
}

Buffer<std::byte> activations(Backend& backend, int64_t elements, Precision precision) {
  return {backend, static_cast<size_t>(elements) * bytes_of(precision), MemoryCategory::activations};
}

}  // namespace

Pass::Pass(Network& network, size_t begin, size_t end, const Shape& input, Mode mode)
    : network_(&network), begin_(begin), mode_(mode) {
  Backend& backend = network.backend();
  Shape shape = input;
  int64_t largest = 0;
  int64_t largest_weight = 0;
  int64_t largest_bias = 0;
  for (size_t i = begin; i < end; ++i) {
    const LayerSpec& spec = network.layers()[i].spec;
    if (spec.kind == LayerKind::max_pool2d && (shape[1] < spec.window.size || shape[2] < spec.window.size))
      fail<ShapeError>("images of this size are too small for the network: use {} pixels or more",
                       network.spec().smallest_image);
    shape = spec.output_shape(shape);
    shapes_.push_back(shape);
    if (spec.kind == LayerKind::flatten) features_end_ = i + 1 - begin;
    largest = std::max(largest, shape.elements());
    if (spec.has_parameters()) {
      largest_weight = std::max(largest_weight, spec.weight.elements());
      largest_bias = std::max(largest_bias, spec.weight[0]);
    }
  }
  if (mode == Mode::inference) {
    plan_inference(input);
    return;
  }
  for (size_t i = 0; i < shapes_.size(); ++i)
    if (rotation(i)) throw Error("layers of rotated weights do not train");
  training_ = &backend.training();
  if (!network.trains()) throw Error("training needs a network in float32, or one made for it, that is not folded");
  plan_training(input, largest);
  dw_ = Tensor<float>(backend, {largest_weight}, MemoryCategory::gradients);
  dbias_ = Tensor<float>(backend, {largest_bias}, MemoryCategory::gradients);
}

void Pass::plan_inference(const Shape& input) {
  Backend& backend = network_->backend();
  const Precision precision = network_->storage();
  at_once_ = std::min(backend.images_at_once(network_->precision()), input[0]);
  const bool parted = at_once_ < input[0] && features_end_ > 0;
  int64_t largest = 0;
  for (size_t i = 0; i < shapes_.size(); ++i)
    largest = std::max(
        largest, parted && i < features_end_ ? with_batch(shapes_[i], at_once_).elements() : shapes_[i].elements());
  // An input that is to be converted or rotated is copied to one of the buffers. The output is
  // float32.
  size_t first = 0;
  while (first + 1 < shapes_.size() && !network_->layers()[begin_ + first].spec.has_parameters()) ++first;
  const bool copied = precision != Precision::float32 || rotation(first);
  const int64_t stored = copied ? std::max(largest, input.elements()) : largest;
  const size_t bytes = std::max(static_cast<size_t>(stored) * bytes_of(precision),
                                static_cast<size_t>(shapes_.back().elements()) * sizeof(float));
  for (auto& buffer : alternating_) buffer = {backend, bytes, MemoryCategory::activations};
  if (parted) features_ = activations(backend, shapes_[features_end_ - 1].elements(), precision);
  if (network_->precision() == Precision::int8)
    invalid_ = {backend, static_cast<size_t>(slots * input[0]), MemoryCategory::activations};
}

std::optional<ByteScale> Pass::byte_scale(size_t index) const {
  if (invalid_.size() == 0) return std::nullopt;
  const auto spec_at = [this](size_t i) -> const LayerSpec& { return network_->layers()[begin_ + i].spec; };
  const auto passes_bytes = [&](size_t i) {
    const LayerKind kind = spec_at(i).kind;
    return kind == LayerKind::max_pool2d || kind == LayerKind::flatten ||
           does_nothing(spec_at(i), shapes_[i - 1], shapes_[i]);
  };
  size_t writer = index, reader = index + 1;
  while (writer > 0 && passes_bytes(writer)) --writer;
  while (reader < shapes_.size() && passes_bytes(reader)) ++reader;
  if (reader == shapes_.size()) return std::nullopt;
  const auto& layers = network_->layers();
  const Weight* written = layers[begin_ + writer].weight.get();
  const Weight* read = layers[begin_ + reader].weight.get();
  return written != nullptr && read != nullptr && written->writes_bytes() ? read->byte_scale() : std::nullopt;
}

Activations Pass::output_of(size_t index, int64_t batch, size_t slot) {
  std::byte* const data = slot < alternating_.size() ? alternating_[slot].data() : features_.data();
  const Shape shape = with_batch(shapes_[index], batch);
  if (const std::optional<ByteScale> scale = byte_scale(index)) {
    uint8_t* const invalid = invalid_.data() + static_cast<int64_t>(slot) * shapes_.front()[0];
    return {reinterpret_cast<uint8_t*>(data), shape, {*scale, invalid}};
  }
  return {data, shape, index + 1 == shapes_.size() ? Precision::float32 : network_->storage()};
}

/// `largest`: elements of a layer's output.
void Pass::plan_training(const Shape& input, int64_t largest) {
  Backend& backend = network_->backend();
  const Precision precision = network_->storage();
  live_.resize(shapes_.size());
  passes_through_.assign(shapes_.size(), false);
  for (size_t i = 0; i < shapes_.size(); ++i) {
    const LayerSpec& spec = network_->layers()[begin_ + i].spec;
    const bool last = i + 1 == shapes_.size();
    // Not behind a layer with parameters: this layer's backward step masks or keeps the gradient
    // there.
    passes_through_[i] = i > 0 && !last && !network_->layers()[begin_ + i - 1].spec.has_parameters() &&
                         averages_nothing(spec, shapes_[i - 1], shapes_[i]);
    outputs_.push_back(passes_through_[i]
                           ? Buffer<std::byte>()
                           : activations(backend, shapes_[i].elements(), last ? Precision::float32 : precision));
    const bool pooling = spec.kind == LayerKind::max_pool2d;
    argmax_.push_back(pooling ? Tensor<uint8_t>(backend, shapes_[i], MemoryCategory::activations) : Tensor<uint8_t>());
    const bool kept = in_fp16() && spec.has_parameters();
    kept_gradients_.push_back(kept ? activations(backend, shapes_[i].elements(), precision) : Buffer<std::byte>());
  }
  for (auto& gradient : gradients_) gradient = activations(backend, largest, precision);
  if (!in_fp16()) return;
  converted_ = activations(backend, input.elements(), precision);
  overflow_ = Tensor<uint32_t>(backend, {1}, MemoryCategory::activations);
}

LayerMemory Pass::memory_of(size_t index) {
  constexpr uint64_t layers_at_most = 64;
  return {.argmax = {argmax_[index].data(), live_[index].shape()},
          .probability = dropout_.probability,
          .key = {dropout_.seed, dropout_.step * layers_at_most + begin_ + index,
                  static_cast<uint64_t>(dropout_.first_image * live_[index].shape().inner_elements())}};
}

TensorView<const float> Pass::forward(ConstActivations x, const DropoutPlan& dropout) {
  if (network_->folded() && begin_ == 0) throw Error("a folded network takes images' bytes, not prepared images");
  if (x.size(0) > shapes_.front()[0])
    fail<ShapeError>("a batch of {}, planned for at most {}", x.size(0), shapes_.front()[0]);
  if (mode_ == Mode::inference)
    return replays_
        .run(network_->backend(), x, [this](ConstActivations batch) { return infer(batch, 0, shapes_.size()); })
        .floats();
  dropout_ = dropout;
  return forward_and_keep(x);
}

TensorView<const float> Pass::forward(TensorView<const uint8_t> images) {
  if (!network_->folded() || begin_ != 0 || mode_ != Mode::inference)
    throw Error("inference from bytes needs a folded network, from its first layer on");
  const int64_t batch = images.size(0);
  if (batch > shapes_.front()[0]) fail<ShapeError>("a batch of {}, planned for at most {}", batch, shapes_.front()[0]);
  Layer& first = network_->layers().front();
  const auto run_first = [&](TensorView<const uint8_t> some) {
    const Activations y(alternating_[0].data(), with_batch(shapes_.front(), some.size(0)), network_->storage());
    first.folded->run(y, some, first.spec.epilogue);
    return y;
  };
  if (in_parts(batch)) {
    const auto infer_part = [&](int64_t n, int64_t count, Activations result) {
      infer_layers(run_first(images.slice(n, count)), 1, features_end_, result);
    };
    return infer_in_parts(batch, infer_part, shapes_.size()).floats();
  }
  return replays_
      .run(network_->backend(), run_first(images), [this](ConstActivations x) { return infer(x, 1, shapes_.size()); })
      .floats();
}

std::unique_ptr<Recording> Pass::record_layers(ConstActivations x, size_t end) {
  return network_->backend().record([&] { infer(x, 0, end); });
}

/// Runs layers [first, end). `x` is the output of the layer before, in alternating_[0] if this pass
/// computed it.
ConstActivations Pass::infer(ConstActivations x, size_t first, size_t end) {
  if (!in_parts(x.size(0))) return infer_layers(x, first, end);
  const auto infer_part = [&](int64_t n, int64_t count, Activations result) {
    if (end < features_end_)
      infer_layers(x.slice(n, count), first, end);
    else
      infer_layers(x.slice(n, count), first, features_end_, result);
  };
  return infer_in_parts(x.size(0), infer_part, end);
}

ConstActivations Pass::infer_in_parts(int64_t batch, const PartOfFeatures& infer_part, size_t end) {
  const Activations features = output_of(features_end_ - 1, batch, features_slot);
  for (int64_t n = 0; n < batch; n += at_once_) {
    const int64_t count = std::min(at_once_, batch - n);
    infer_part(n, count, features.slice(n, count));
  }
  return infer_layers(features, features_end_, std::max(end, features_end_));
}

ConstActivations Pass::infer_layers(ConstActivations x, size_t first, size_t end, Activations result) {
  const Precision precision = network_->storage();
  const int64_t batch = x.size(0);
  size_t next = first;
  const auto buffer = [&] { return alternating_[next++ % 2].data(); };
  if (x.precision() != precision && x.precision() != Precision::int8) {
    const Activations converted(buffer(), x.shape(), precision);
    network_->backend().convert(converted, x);
    x = converted;
  }
  for (size_t i = first; i < end; ++i) {
    if (does_nothing(network_->layers()[begin_ + i].spec, x.shape(), shapes_[i])) continue;
    if (const Rotation wanted = rotation(i)) {
      const Activations rotated(is_own(x) ? const_cast<void*>(x.data()) : buffer(), x.shape(), precision);
      network_->backend().hadamard(rotated, x, wanted);
      x = rotated;
    }
    const size_t last = last_fused(i, x);
    const bool to_result = last + 1 == end && result.data() != nullptr;
    const Activations y = to_result ? result : output_of(last, batch, next++ % 2);
    if (last > i)
      run_pooled(i, y, x);
    else
      run_layer(i, y, x);
    x = y;
    i = last;
  }
  if (x.precision() == Precision::float32 || end < shapes_.size()) return x;
  const Activations y(buffer(), x.shape(), Precision::float32);  // the last layer did nothing
  network_->backend().convert(y, x);
  return y;
}

Rotation Pass::rotation(size_t index) const {
  const Weight* weight = network_->layers()[begin_ + index].weight.get();
  return weight == nullptr ? Rotation{} : weight->rotation();
}

bool Pass::is_own(ConstActivations x) const {
  const auto lies_in = [&](const Buffer<std::byte>& buffer) {
    const std::less_equal<const void*> before;
    return before(buffer.data(), x.data()) && !before(buffer.data() + buffer.size(), x.data());
  };
  return std::ranges::any_of(alternating_, lies_in) || lies_in(features_);
}

size_t Pass::last_fused(size_t index, ConstActivations x) const {
  const auto spec_at = [this](size_t i) -> const LayerSpec& { return network_->layers()[begin_ + i].spec; };
  if (!pools_behind(index, shapes_.size(), spec_at)) return index;
  const auto route_of = [&](ForwardQuestion question) {
    question.aligned = on_16_bytes(x.data());
    return network_->backend().route(*network_->layers()[begin_ + index].weight, question);
  };
  return fused_layers(index, x.shape(), network_->storage(), shapes_, spec_at, route_of).last;
}

void Pass::run_pooled(size_t index, Activations y, ConstActivations x) {
  Layer& layer = network_->layers()[begin_ + index];
  const LayerSpec& pool = network_->layers()[begin_ + index + 1].spec;
  conv2d_max_pool2d_forward(network_->backend(), y, x, *layer.weight, layer.bias.view(), layer.spec.window,
                            layer.spec.epilogue, pool.window);
}

TensorView<const float> Pass::forward_and_keep(ConstActivations x) {
  const int64_t batch = x.size(0);
  const Precision precision = network_->storage();
  if (x.precision() != precision) {
    const Activations converted(converted_.data(), x.shape(), precision);
    network_->backend().convert(converted, x);
    x = converted;
  }
  input_ = x;
  for (size_t i = 0; i < shapes_.size(); ++i) {
    const bool last = i + 1 == shapes_.size();
    if (passes_through_[i]) {
      live_[i] = live_[i - 1];
      continue;
    }
    live_[i] = {outputs_[i].data(), with_batch(shapes_[i], batch), last ? Precision::float32 : precision};
    run_layer(i, live_[i], x, memory_of(i));
    x = live_[i];
  }
  return x.floats();
}

void Pass::run_layer(size_t index, Activations y, ConstActivations x, const LayerMemory& memory) {
  const Layer& layer = network_->layers()[begin_ + index];
  forward_layer(network_->backend(), layer.spec, y, x, layer.weight.get(), layer.bias.view(), memory);
}

}  // namespace nibblenet
