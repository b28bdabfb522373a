#include "layers/network/layer_kinds.h"

#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/pooling.h"

namespace nibblenet {

Shape LayerSpec::output_shape(const Shape& input) const {
  switch (kind) {
    case LayerKind::conv2d:
      return conv2d_output_shape(input, weight, window);
    case LayerKind::max_pool2d:
      return max_pool2d_output_shape(input, window);
    case LayerKind::adaptive_average_pool2d:
      return {input[0], output_size, output_size, input[3]};
    case LayerKind::flatten:
      return {input[0], input.inner_elements()};
    case LayerKind::dropout:
      return input;
    case LayerKind::linear:
      if (input.rank() != 2 || input[1] != weight[1])
        fail<ShapeError>("{}: input {} does not fit weight {}", name, to_string(input), to_string(weight));
      return {input[0], weight[0]};
  }
  fail<ShapeError>("unknown layer kind {}", static_cast<int>(kind));
}

void forward_layer(Backend& backend, const LayerSpec& spec, Activations y, ConstActivations x, Weight* weight,
                   TensorView<const float> bias, const LayerMemory& memory) {
  switch (spec.kind) {
    case LayerKind::conv2d:
      conv2d_forward(backend, y, x, *weight, bias, spec.window, spec.epilogue);
      break;
    case LayerKind::max_pool2d:
      max_pool2d_forward(backend, y, memory.argmax, x, spec.window);
      break;
    case LayerKind::adaptive_average_pool2d:
      adaptive_average_pool2d_forward(backend, y, x);
      break;
    case LayerKind::flatten:
      flatten_forward(backend, y, x);
      break;
    case LayerKind::dropout:
      dropout_forward(backend.training(), y, x, memory.probability, memory.key);
      break;
    case LayerKind::linear:
      linear_forward(backend, y, x, *weight, bias, spec.epilogue);
      break;
  }
}

void backward_layer(Training& backend, const LayerSpec& spec, Activations dx, ConstActivations dy, Weight* weight,
                    const LayerMemory& memory, const GradientStore& store) {
  switch (spec.kind) {
    case LayerKind::conv2d:
      conv2d_backward_data(backend, dx, dy, *weight, spec.window, store);
      break;
    case LayerKind::max_pool2d:
      max_pool2d_backward(backend, dx, dy, memory.argmax, spec.window, store);
      break;
    case LayerKind::adaptive_average_pool2d:
      adaptive_average_pool2d_backward(backend, dx, dy);
      backend.finish_gradient(dx, store);
      break;
    case LayerKind::flatten:
      flatten_backward(backend, dx, dy);
      backend.finish_gradient(dx, store);
      break;
    case LayerKind::dropout:
      dropout_backward(backend, dx, dy, memory.probability, memory.key, store);
      break;
    case LayerKind::linear:
      linear_backward_data(backend, dx, dy, *weight, store);
      break;
  }
}

StoredGradients GradientSource::store() const {
  if (spec.kind == LayerKind::conv2d)
    conv2d_backward_weight(backend.training(), scratch.dw, scratch.dbias, dy, x, spec.window);
  else
    linear_backward_weight(backend.training(), scratch.dw, scratch.dbias, dy, x);
  if (factor != 1.0F) {
    backend.convert(scratch.dw, scratch.dw, factor);
    backend.convert(scratch.dbias, scratch.dbias, factor);
  }
  return scratch;
}

bool GradientSource::fuses_step() const { return backend.training().fuses_step(dy, x, spec.window); }

void GradientSource::apply(const TrainedLayer& layer, const SgdParameters& parameters) const {
  expect_shape(dy.shape(), spec.output_shape(x.shape()), "output gradient of " + spec.name);
  backend.training().backward_step(layer, dy, x, spec.window, factor, parameters);
}

}  // namespace nibblenet
