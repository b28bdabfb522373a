#include "engine/model/pass.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/pooling.h"
#include "layers/relu.h"

namespace nibblenet {

bool Pass::backward(TensorView<const float> dloss, const OnGradient& on_gradient, const OnLayer& on_layer,
                    float loss_scale) {
  if (mode_ != Mode::training) throw Error("backward() needs a training pass");
  Backend& backend = network_->backend();
  size_t lowest = 0;  // below the first layer with parameters no gradient is needed
  while (lowest < shapes_.size() && !network_->layers()[begin_ + lowest].spec.has_parameters()) ++lowest;
  ConstActivations dy = dloss;
  if (in_halves()) {
    const Activations scaled(free_gradient(dloss), dloss.shape(), Precision::float16);
    backend.convert(scaled, dloss, loss_scale);
    dy = scaled;
  }
  for (size_t i = shapes_.size(); i-- > lowest;) {
    if (passes_through_[i]) continue;
    const LayerSpec& spec = network_->layers()[begin_ + i].spec;
    const Shape& x = i == 0 ? input_.shape() : live_[i - 1].shape();
    const Activations dx = i == lowest ? Activations() : Activations(free_gradient(dy), x, network_->precision());
    dy = before_epilogue(i, dy);
    if (!spec.has_parameters()) {
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
      use_gradients(i, own_gradient(i, live_[i]), on_gradient, on_layer, 1.0F / loss_scale);
  return true;
}

/// The gradient in front of a layer's ReLU, where it stays until it is used.
ConstActivations Pass::before_epilogue(size_t index, ConstActivations dy) {
  const LayerSpec& spec = network_->layers()[begin_ + index].spec;
  const bool has_relu = spec.epilogue == Epilogue::relu;
  if (!has_relu && !(in_halves() && spec.has_parameters())) return dy;
  const Activations own = own_gradient(index, dy);
  if (has_relu)
    relu_backward(network_->backend(), own, dy, live_[index]);
  else
    network_->backend().convert(own, dy);
  return own;
}

Activations Pass::own_gradient(size_t index, ConstActivations dy) {
  Buffer<std::byte>& kept = kept_gradients_[index];
  // Without one of its own: where dy is already, unless the layer is the last one.
  const size_t alternating = dy.data() == gradients_[1].data() ? 1 : 0;
  return {kept.size() > 0 ? kept.data() : gradients_[alternating].data(), dy.shape(), network_->precision()};
}

std::byte* Pass::free_gradient(ConstActivations dy) {
  return gradients_[dy.data() == gradients_[0].data() ? 1 : 0].data();
}

/// Whether one of the gradients that stay is not finite. Sums of finite halves are.
bool Pass::found_overflow() {
  Backend& backend = network_->backend();
  uint32_t found = 0;
  backend.copy_from_host(overflow_.data(), &found, sizeof(found));
  for (size_t i = 0; i < shapes_.size(); ++i)
    if (kept_gradients_[i].size() > 0) backend.find_overflow(overflow_.view(), own_gradient(i, live_[i]));
  backend.copy_to_host(&found, overflow_.data(), sizeof(found));
  return found != 0;
}

void Pass::data_gradient(size_t index, Activations dx, ConstActivations dy) {
  Layer& layer = network_->layers()[begin_ + index];
  if (layer.spec.kind == LayerKind::conv2d)
    conv2d_backward_data(network_->backend(), dx, dy, *layer.weight, layer.spec.window);
  else
    linear_backward_data(network_->backend(), dx, dy, *layer.weight);
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
    conv2d_backward_weight(backend, dw, dbias, dy, x, layer.spec.window);
  else
    linear_backward_weight(backend, dw, dbias, dy, x);
  if (factor != 1.0F) {
    backend.convert(dw, dw, factor);
    backend.convert(dbias, dbias, factor);
  }
  on_gradient(layer, dw, dbias);
}

void Pass::backward_layer(size_t index, Activations dx, ConstActivations dy) {
  Backend& backend = network_->backend();
  const LayerSpec& spec = network_->layers()[begin_ + index].spec;
  switch (spec.kind) {
    case LayerKind::max_pool2d:
      max_pool2d_backward(backend, dx, dy, {argmax_[index].data(), dy.shape()}, spec.window);
      break;
    case LayerKind::adaptive_average_pool2d:
      adaptive_average_pool2d_backward(backend, dx, dy);
      break;
    case LayerKind::flatten:
      flatten_backward(backend, dx, dy);
      break;
    case LayerKind::dropout:
      dropout_backward(backend, dx, dy, dropout_.probability, dropout_key(index));
      break;
    case LayerKind::conv2d:
    case LayerKind::linear:
      break;
  }
}

}  // namespace nibblenet
