#include "layers/network/pass.h"

namespace nibblenet {

bool Pass::backward(TensorView<const float> dloss, const OnWeightGradient& on_weight_gradient, float loss_scale,
                    const Agree& agree) {
  if (mode_ != Mode::training) throw Error("backward() needs a training pass");
  size_t lowest = 0;  // below the first layer with parameters no gradient is needed
  while (lowest < shapes_.size() && !network_->layers()[begin_ + lowest].spec.has_parameters()) ++lowest;
  constexpr uint32_t none = 0;
  if (in_fp16()) network_->backend().copy_from_host(overflow_.data(), &none, sizeof(none));
  ConstActivations dy = first_gradient(dloss, loss_scale);
  for (size_t i = shapes_.size(); i-- > lowest;) {
    if (passes_through_[i]) continue;
    const Activations dx = i == lowest ? Activations() : gradient_of(i - 1, live_[i - 1].shape(), dy);
    const Layer& layer = network_->layers()[begin_ + i];
    if (dx.data() != nullptr)
      backward_layer(*training_, layer.spec, dx, dy, layer.weight.get(), memory_of(i), store_of(i - 1));
    if (layer.spec.has_parameters() && !in_fp16()) use_gradient(i, dy, 1.0F, on_weight_gradient);
    dy = dx;
  }
  if (!in_fp16()) return true;
  uint32_t found = 0;  // checks the kept gradients alone: float32 sums of finite fp16 values are finite
  network_->backend().copy_to_host(&found, overflow_.data(), sizeof(found));
  if (agree ? !agree(found == 0) : found != 0) return false;
  for (size_t i = shapes_.size(); i-- > lowest;)
    if (network_->layers()[begin_ + i].spec.has_parameters())
      use_gradient(i, gradient_of(i, live_[i].shape(), {}), 1.0F / loss_scale, on_weight_gradient);
  return true;
}

/// The gradient before the last layer's ReLU, times the scale.
ConstActivations Pass::first_gradient(TensorView<const float> dloss, float loss_scale) {
  const size_t last = shapes_.size() - 1;
  const GradientStore store = store_of(last);
  if (!in_fp16() && store.relu_output.data() == nullptr) return dloss;
  const Activations dy = gradient_of(last, dloss.shape(), dloss);
  network_->backend().convert(dy, dloss, loss_scale);
  training_->finish_gradient(dy, store);
  return dy;
}

Activations Pass::gradient_of(size_t index, const Shape& shape, ConstActivations dy) {
  Buffer<std::byte>& alternating = gradients_[dy.data() == gradients_[0].data() ? 1 : 0];
  Buffer<std::byte>& kept = kept_gradients_[index];
  return {kept.size() > 0 ? kept.data() : alternating.data(), shape, network_->storage()};
}

GradientStore Pass::store_of(size_t index) {
  GradientStore store;
  if (network_->layers()[begin_ + index].spec.epilogue == Epilogue::relu) store.relu_output = live_[index];
  if (kept_gradients_[index].size() > 0) store.overflow = overflow_.view();
  return store;
}

void Pass::use_gradient(size_t index, ConstActivations dy, float factor, const OnWeightGradient& use) {
  Layer& layer = network_->layers()[begin_ + index];
  use(layer, {.dy = dy,
              .x = index == 0 ? input_ : live_[index - 1],
              .factor = factor,
              .spec = layer.spec,
              .backend = network_->backend(),
              .scratch = {{dw_.data(), layer.spec.weight}, {dbias_.data(), {layer.spec.weight[0]}}}});
}

}  // namespace nibblenet
