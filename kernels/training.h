#pragma once

#include <memory>
#include <span>

#include "kernels/inference.h"

namespace nibblenet {

/// Position of one dropout call in the random sequence: the backward pass draws the same mask again
/// from the same key.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
  /// Added to each element's index: element i draws random_bits(seed, stream, offset + i).
  uint64_t offset = 0;
};

/// Hyperparameters of one SGD step.
struct SgdParameters {
  float learning_rate = 0.001F;
  float momentum = 0.9F;
  float weight_decay = 0.0F;
  bool keep_zeros = false;   ///< weights that are 0 (pruned) stay 0, and their velocities too
  float bias_factor = 1.0F;  ///< of the learning rate of biases; what weight decay takes from them a step stays

  /// The step of a bias.
  SgdParameters of_bias() const { return {learning_rate * bias_factor, momentum, weight_decay / bias_factor}; }
};

/// Fused epilogue of a data gradient: applies the ReLU mask and checks for overflow before dx is
/// written. Same bits as relu_backward followed by find_overflow.
struct GradientStore {
  ConstActivations relu_output;   ///< of dx's shape and precision: dx is 0 where this is not positive; empty: no ReLU
  TensorView<uint32_t> overflow;  ///< [1], becomes 1 when a masked element is not finite; empty: no check
};

/// The tensors of a layer that SGD updates, in the backend's memory.
struct TrainedLayer {
  Weight& weight;
  TensorView<float> bias;
  TensorView<float> weight_velocity;
  TensorView<float> bias_velocity;
};

/// How weights that train in packed form are rounded: like packing with these scales and this
/// codebook.
struct RoundingRule {
  GroupMap groups;                ///< of any granularity but `sorted`
  Codebook codebook;              ///< without zero points
  TensorView<const float> steps;  ///< [groups] scale / scale_to, in the backend's memory
  bool by_code = false;           ///< the codes are fixed: `master` holds them, as numbers, instead of weights
};

/// What becomes of gradients once they are there: sums of them, and SGD. A backend does it in the
/// order of its operations, an Exchange beside these.
class ParameterSteps {
 public:
  virtual ~ParameterSteps() = default;
  /// y += x
  virtual void add(TensorView<float> y, TensorView<const float> x) = 0;
  /// g = dw + weight_decay w; v = momentum v + g; w -= learning_rate v (PyTorch's SGD, dampening
  /// 0). The first step starts from v = 0.
  virtual void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                        SgdParameters parameters) = 0;
};

/// The operations of a backward pass and of SGD. A backend that trains implements this beside
/// Backend, whose training() finds it. The conventions are those of Inference.
class Training : public ParameterSteps {
 public:
  /// A weight that trains on float16 activations (Micikevicius 2018, arXiv 1710.03740): float32
  /// values, and fp16 copies that products use and changed() renews. Throws UsageError when the
  /// backend trains in float32 only.
  virtual std::unique_ptr<Weight> make_trained_weight(TensorView<const float> /*host_values*/) {
    throw UsageError("--precision float16: this device trains in float32 only");
  }

  /// y[i] = x[rows[i]] over the first dimension; `rows` lies on the host.
  virtual void gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) = 0;

  /// y = x / (1 - p) where the element's draw is >= p, else 0. The backward pass applies it to dy.
  virtual void dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
                       const GradientStore& store = {}) = 0;

  /// Cross-entropy against targets[N,K], each row of which is a distribution:
  /// losses[n] = -sum targets log softmax(logits); dlogits = (softmax - targets) * scale.
  virtual void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                                  TensorView<const float> targets, float scale) = 0;

  /// Data gradient dx[N,H,W,C], and weight gradients dw[K,C,R,S] and dbias[K], of conv2d_forward
  /// before its epilogue.
  virtual void conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                                    const GradientStore& store = {}) = 0;
  virtual void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                      ConstActivations x, Window window) = 0;

  /// Data gradient dx[N,C], and weight gradients dw[K,C] and dbias[K], of linear_forward before its
  /// epilogue.
  virtual void linear_backward_data(Activations dx, ConstActivations dy, Weight& w,
                                    const GradientStore& store = {}) = 0;
  virtual void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                      ConstActivations x) = 0;

  /// dx = dy where y > 0, else 0; dx may be dy.
  virtual void relu_backward(Activations dx, ConstActivations dy, ConstActivations y) = 0;

  /// Gradients of the pooling and flatten operations of Inference. A pixel gathers the gradients of
  /// the outputs it went into.
  virtual void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                                   const GradientStore& store = {}) = 0;
  virtual void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy) = 0;
  virtual void flatten_backward(Activations dx, ConstActivations dy) = 0;

  /// average += share (x - average)
  virtual void move_average(TensorView<float> average, TensorView<const float> x, float share) = 0;

  /// Whether the backend fuses the weight gradient of these operands with SGD; a linear layer has
  /// no window. Runs nothing.
  virtual bool fuses_step(ConstActivations /*dy*/, ConstActivations /*x*/, Window = {}) const { return false; }
  /// Fused weight gradient and SGD: dw and dbias, times `factor`, are never stored. Same bits as
  /// the gradient followed by sgd_step of the weight, and of the bias by of_bias(). Throws Error
  /// when fuses_step() is false.
  virtual void backward_step(const TrainedLayer&, ConstActivations /*dy*/, ConstActivations /*x*/, Window,
                             float /*factor*/, SgdParameters) {
    throw Error("this backend does not fuse weight gradients and SGD");
  }

  /// found[0] = 1 if an element of x is not finite; else found keeps its value.
  virtual void find_overflow(TensorView<uint32_t> found, ConstActivations x) = 0;
  /// Applies the epilogue `store` to a dx in memory, for operations that do not fuse it.
  void finish_gradient(Activations dx, const GradientStore& store) {
    if (store.relu_output.data() != nullptr) relu_backward(dx, dx, store.relu_output);
    if (store.overflow.data() != nullptr) find_overflow(store.overflow, dx);
  }

  /// values = master[K, ...], rounded: with x = master / step of its group, the codebook value
  /// nearest to x, times step. These are the bits of packing by this rule and decoding. A group
  /// whose step is 0 holds zeros. With rule.by_code: the codebook value of code master, times step.
  virtual void round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule) = 0;
  /// Gradients of round_weights() by straight-through estimation:
  ///   dweights   in place, dL/dvalues becomes dL/dmaster. It is kept where x lies in the codebook's
  ///              range, or a step against the gradient leads towards the range; else it becomes 0
  ///   dsteps     [groups], sum of dweights (value - x); of dweights value outside the range (LSQ,
  ///              Esser 2020, eq. 3)
  ///   dcodebook  [256] or empty, by code, sum of dweights step over the weights that take the code
  ///              (Han 2016)
  /// Groups whose step is 0 get no gradients. With rule.by_code, dsteps = sum of dweights value,
  /// and dweights stays.
  virtual void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                                      TensorView<const float> master, const RoundingRule& rule) = 0;
};

}  // namespace nibblenet
