#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/network/pass.h"
#include "layers/pooling.h"

namespace nibblenet {

bool Pass::backward(TensorView<const float> dloss, const OnGradient& on_gradient, const OnLayer& on_layer,
                    float loss_scale) {
  if (mode_ != Mode::training) throw Error("backward() needs a training pass");
  size_t lowest = 0;  // below the first layer with parameters no gradient is needed
  while (lowest < shapes_.size() && !network_->layers()[begin_ + lowest].spec.has_parameters()) ++lowest;
  if (in_halves()) clear_overflow();
  ConstActivations dy = first_gradient(dloss, loss_scale);
  for (size_t i = shapes_.size(); i-- > lowest;) {
    if (passes_through_[i]) continue;
    const Activations dx = i == lowest ? Activations() : gradient_of(i - 1, live_[i - 1].shape(), dy);
    if (!network_->layers()[begin_ + i].spec.has_parameters()) {
      backward_layer(i, dx, dy);
    } else {
      if (dx.data() != nullptr) data_gradient(i, dx, dy);
      if (!in_halves()) use_gradients(i, dy, on_gradient, on_layer, 1.0F);
    }
    dy = dx;
  }
  if (!in_halves()) return true;
  if (found_overflow()) return false;
  for (size_t i = shapes_.size(); i-- > lowest;)
    if (network_->layers()[begin_ + i].spec.has_parameters())
      use_gradients(i, gradient_of(i, live_[i].shape(), {}), on_gradient, on_layer, 1.0F / loss_scale);
  return true;
}

/// The last layer's, in front of its ReLU and times the scale.
ConstActivations Pass::first_gradient(TensorView<const float> dloss, float loss_scale) {
  const size_t last = shapes_.size() - 1;
  const GradientStore store = store_of(last);
  if (!in_halves() && store.relu_output.data() == nullptr) return dloss;
  const Activations dy = gradient_of(last, dloss.shape(), dloss);
  network_->backend().convert(dy, dloss, loss_scale);
  training_->finish_gradient(dy, store);
  return dy;
}

/// Where dx of a layer is to be written that does not lie in dy's place.
Activations Pass::gradient_of(size_t index, const Shape& shape, ConstActivations dy) {
  Buffer<std::byte>& alternating = gradients_[dy.data() == gradients_[0].data() ? 1 : 0];
  Buffer<std::byte>& kept = kept_gradients_[index];
  return {kept.size() > 0 ? kept.data() : alternating.data(), shape, network_->precision()};
}

GradientStore Pass::store_of(size_t index) {
  GradientStore store;
  if (network_->layers()[begin_ + index].spec.epilogue == Epilogue::relu) store.relu_output = live_[index];
  if (kept_gradients_[index].size() > 0) store.overflow = overflow_.view();
  return store;
}

void Pass::clear_overflow() {
  constexpr uint32_t none = 0;
  network_->backend().copy_from_host(overflow_.data(), &none, sizeof(none));
}

/// Whether one of the gradients that stay is not finite. Sums of finite halves are.
bool Pass::found_overflow() {
  uint32_t found = 0;
  network_->backend().copy_to_host(&found, overflow_.data(), sizeof(found));
  return found != 0;
}

void Pass::data_gradient(size_t index, Activations dx, ConstActivations dy) {
  Layer& layer = network_->layers()[begin_ + index];
  if (layer.spec.kind == LayerKind::conv2d)
    conv2d_backward_data(*training_, dx, dy, *layer.weight, layer.spec.window, store_of(index - 1));
  else
    linear_backward_data(*training_, dx, dy, *layer.weight, store_of(index - 1));
}

void Pass::use_gradients(size_t index, ConstActivations dy, const OnGradient& on_gradient, const OnLayer& on_layer,
                         float factor) {
  Backend& backend = network_->backend();
  Layer& layer = network_->layers()[begin_ + index];
  const ConstActivations x = index == 0 ? input_ : live_[index - 1];
  if (on_layer && on_layer(layer, dy, x, factor)) return;
  const TensorView<float> dw(dw_.data(), layer.spec.weight);
  const TensorView<float> dbias(dbias_.data(), {layer.spec.weight[0]});
  if (layer.spec.kind == LayerKind::conv2d)
    conv2d_backward_weight(*training_, dw, dbias, dy, x, layer.spec.window);
  else
    linear_backward_weight(*training_, dw, dbias, dy, x);
  if (factor != 1.0F) {
    backend.convert(dw, dw, factor);
    backend.convert(dbias, dbias, factor);
  }
  on_gradient(layer, dw, dbias);
}

void Pass::backward_layer(size_t index, Activations dx, ConstActivations dy) {
  const LayerSpec& spec = network_->layers()[begin_ + index].spec;
  const GradientStore store = store_of(index - 1);
  switch (spec.kind) {
    case LayerKind::max_pool2d:
      max_pool2d_backward(*training_, dx, dy, {argmax_[index].data(), dy.shape()}, spec.window, store);
      break;
    case LayerKind::adaptive_average_pool2d:
      adaptive_average_pool2d_backward(*training_, dx, dy);
      training_->finish_gradient(dx, store);
      break;
    case LayerKind::flatten:
      flatten_backward(*training_, dx, dy);
      training_->finish_gradient(dx, store);
      break;
    case LayerKind::dropout:
      dropout_backward(*training_, dx, dy, dropout_.probability, dropout_key(index), store);
      break;
    case LayerKind::conv2d:
    case LayerKind::linear:
      break;
  }
}

}  // namespace nibblenet
