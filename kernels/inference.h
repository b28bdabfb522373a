#pragma once

#include <limits>
#include <memory>
#include <optional>

#include "engine/quant/packed_tensor.h"
#include "kernels/activations.h"
#include "kernels/forward_route.h"
#include "kernels/shapes.h"
#include "kernels/weight.h"

namespace nibblenet {

/// The operations of a forward pass. Outputs come first. All views lie in the backend's memory.
/// Callers (layers/) check the shapes. Results are the same bits on every run with the same number
/// of threads.
///
/// x is float32 or float16; y may be float32 when x is float16. Float16 activations take packed or
/// float16 weights, float32 activations packed or float32 weights. Sums are float32. Where
/// Weight::byte_scale() and writes_bytes() say so, x or y may be bytes, which max pooling and
/// flatten pass on: the values are those of float32 activations that the next product rounds.
class Inference {
 public:
  virtual ~Inference() = default;

  /// A copy of float weights in the backend's memory, stored in `precision`.
  virtual std::unique_ptr<Weight> make_weight(TensorView<const float> host_values,
                                              Precision precision = Precision::float32) = 0;
  /// A copy of packed weights, for products in `precision`. Weights that cannot be multiplied in
  /// int8 take another precision: see Weight::product_precision(). `input` serves int8 alone.
  virtual std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision = Precision::float32,
                                              const InputRange& input = {}) = 0;

  /// How many images should pass the convolutions at once, so that activations stay in the caches.
  /// Outputs are the same bits for any number.
  virtual int64_t images_at_once(Precision) const { return std::numeric_limits<int64_t>::max(); }

  /// y = factor x, rounded to y's precision; y may be x.
  virtual void convert(Activations y, ConstActivations x, float factor = 1.0F) = 0;

  /// y = x, rotated: hadamard_transform() of engine/quant/hadamard.h, with its bits in float32. y
  /// may be x. Products with weights of that rotation() read such inputs.
  virtual void hadamard(Activations y, ConstActivations x, Rotation rotation) = 0;

  /// y[N,P,Q,K] = epilogue(conv(x[N,H,W,C], w[K,C,R,S]) + bias[K])
  virtual void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                              Epilogue epilogue) = 0;
  /// Says which kernel computes a forward product, with its pooling if the question has one.
  /// Returns nothing when the backend does not fuse that pooling. Runs nothing.
  virtual std::optional<ForwardRoute> route(const Weight& w, const ForwardQuestion& question) const = 0;
  /// Fused convolution and max pooling: y = max_pool2d(conv2d_forward(x, w), pool), or y[N,KPQ],
  /// the same flattened. Throws Error when route() has no kernel for it.
  virtual void conv2d_max_pool2d_forward(Activations, ConstActivations, Weight&, TensorView<const float> /*bias*/,
                                         Window, Epilogue, Window /*pool*/) {
    throw Error("this backend does not fuse convolution and max pooling");
  }

  /// y[N,K] = epilogue(x[N,C] w[K,C]^T + bias[K])
  virtual void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                              Epilogue epilogue) = 0;

  /// y = max(x, 0); y may be x.
  virtual void relu_forward(TensorView<float> y, TensorView<const float> x) = 0;

  /// y[N,P,Q,C] = largest value of each window. `argmax`, of y's shape, receives the position of
  /// the first maximum in its window, row by row; it is empty unless a backward pass follows.
  virtual void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) = 0;

  /// y[N,P,Q,C]: output row p averages input rows [floor(p H / P), ceil((p + 1) H / P)), as PyTorch
  /// does; likewise columns.
  virtual void adaptive_average_pool2d_forward(Activations y, ConstActivations x) = 0;

  /// y[N, C H W] in PyTorch's order from x[N, H, W, C].
  virtual void flatten_forward(Activations y, ConstActivations x) = 0;

  /// losses[n] = -log softmax(logits[n])[labels[n]]; dlogits = (softmax - onehot) * scale.
  /// `dlogits` is empty unless a backward pass follows.
  virtual void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                             TensorView<const int32_t> labels, float scale) = 0;
};

}  // namespace nibblenet
