#pragma once

#include <string>

#include "kernels/backend.h"
#include "kernels/training.h"

namespace nibblenet {

/// What a layer does.
enum class LayerKind : uint8_t { conv2d, max_pool2d, adaptive_average_pool2d, flatten, dropout, linear };

/// Whether a layer of this kind has a weight and a bias.
inline bool has_parameters(LayerKind kind) { return kind == LayerKind::conv2d || kind == LayerKind::linear; }

/// A layer of a network, with its sizes. A pass walks these forward and backward.
struct LayerSpec {
  LayerKind kind = LayerKind::conv2d;
  std::string name;                    ///< PyTorch's; empty without parameters
  Shape weight;                        ///< [K, C, R, R] or [K, C]
  Window window;                       ///< convolution and max pooling
  Epilogue epilogue = Epilogue::none;  ///< the ReLU behind a convolution or matrix product
  int64_t output_size = 0;             ///< adaptive pooling: P = Q

  bool has_parameters() const { return nibblenet::has_parameters(kind); }
  /// Shape of this layer's output; throws ShapeError when `input` does not fit.
  Shape output_shape(const Shape& input) const;
};

/// What some kinds of layers keep from their forward for their backward pass.
struct LayerMemory {
  TensorView<uint8_t> argmax;  ///< max pooling, of y's shape; no data where no backward pass follows
  float probability = 0;       ///< dropout
  DropoutKey key{};            ///< dropout
};

/// y = layer(x). `weight` is null when the layer has no parameters.
void forward_layer(Backend& backend, const LayerSpec& spec, Activations y, ConstActivations x, Weight* weight,
                   TensorView<const float> bias, const LayerMemory& memory);
/// Data gradient dx of a layer, from dy, the gradient before its epilogue.
void backward_layer(Training& backend, const LayerSpec& spec, Activations dx, ConstActivations dy, Weight* weight,
                    const LayerMemory& memory, const GradientStore& store);

/// The gradients of one layer's weight and bias.
struct StoredGradients {
  TensorView<float> dw;
  TensorView<float> dbias;
};

/// The operands of one layer's parameter gradients. store() or apply() computes these, times
/// `factor`.
struct GradientSource {
  ConstActivations dy;  ///< the gradient before the layer's epilogue
  ConstActivations x;   ///< the layer's input
  float factor = 1.0F;
  const LayerSpec& spec;
  Backend& backend;
  StoredGradients scratch;

  /// Computes dw and dbias into the scratch, which the next layer overwrites.
  StoredGradients store() const;
  /// Whether the backend can apply() the gradient.
  bool fuses_step() const;
  /// Fused weight gradient and SGD: dw is never stored.
  void apply(const TrainedLayer& layer, const SgdParameters& parameters) const;
};

}  // namespace nibblenet
