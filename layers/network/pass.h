#pragma once

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "layers/network/network.h"
#include "layers/network/replays.h"

namespace nibblenet {

/// The dropout of a pass. Masks are a function of seed and step, so that a resumed run draws the
/// same ones.
struct DropoutPlan {
  float probability = 0.0F;
  uint64_t seed = 0;
  uint64_t step = 0;
  int64_t first_image = 0;  ///< of the pass in the step's batch, where several passes compute parts of it
};

/// Runs layers [begin, end) of a network on batches of up to a fixed size. The constructor
/// allocates all memory from the shapes. Inference has two alternating buffers in the network's
/// precision. Training has every layer's output and two gradients; in float16 it also keeps the
/// gradients at all layers with parameters.
class Pass {
 public:
  /// Whether a pass infers or trains.
  enum class Mode : uint8_t { inference, training };
  /// `input` is the shape of the largest batch: [N, S, S, 3], or [N, features] when the range
  /// starts behind the flatten.
  Pass(Network& network, size_t begin, size_t end, const Shape& input, Mode mode);

  /// The last layer's output for x, a batch in the backend's memory. It is float32 in any precision
  /// of the network, and valid until the next call. An inference pass records work on a batch that
  /// comes again from the same memory, and replays it, if the backend can. A training pass keeps
  /// what backward() needs; x must stay valid until then.
  TensorView<const float> forward(ConstActivations x, const DropoutPlan& dropout = {});
  /// The output of a folded network for images[N, height, width, 3], bytes in the backend's memory.
  /// Requires: an inference pass from the first layer on, made for the shape of prepared images.
  TensorView<const float> forward(TensorView<const uint8_t> images);
  /// Records the first `end` layers of an inference pass over x, as forward(x) runs them: with the
  /// same kernels, and further layers where one kernel computes several. Null when the backend does
  /// not record.
  /// Requires: forward(x) has run before, and the network is not folded. A replay overwrites what
  /// forward() returned.
  std::unique_ptr<Recording> record_layers(ConstActivations x, size_t end);
  /// The number of operations that were recorded last; nothing when none were.
  std::optional<int64_t> replayed_operations() const { return replays_.operations(); }

  /// Takes the gradient of one layer's parameters, and may change the parameters: the data gradient
  /// has been computed already.
  using OnWeightGradient = std::function<void(Layer& layer, const GradientSource& gradient)>;
  /// Is told whether all gradients of activations are finite, and returns whether they count so.
  using Agree = std::function<bool(bool finite)>;
  /// The backward pass of the last forward()'s batch, from dy = dLoss/d(output). Calls
  /// on_weight_gradient for each layer with parameters, the last layer first.
  ///
  /// In float16, gradients of activations are those of loss_scale times the loss (Micikevicius
  /// 2018, arXiv 1710.03740, section 3.2); those of parameters are divided by it again. Returns
  /// false, without a call, when a gradient of activations is not finite. In float32, loss_scale is
  /// 1 and the result true. `agree`, where there is one, decides in float16 what the result is: it
  /// is called before any gradient of parameters is computed.
  bool backward(TensorView<const float> dy, const OnWeightGradient& on_weight_gradient, float loss_scale = 1.0F,
                const Agree& agree = {});

 private:
  ConstActivations infer(ConstActivations x, size_t first, size_t end);
  /// Whether that many images pass the features in parts, which the backend's caches hold.
  bool in_parts(int64_t batch) const { return features_.size() > 0 && batch > at_once_; }
  /// Writes the features of images [first, first + count) to `result`.
  using PartOfFeatures = std::function<void(int64_t first, int64_t count, Activations result)>;
  ConstActivations infer_in_parts(int64_t batch, const PartOfFeatures& infer_part, size_t end);
  /// Runs layers [first, end) in inference. The last one writes to `result` unless that is empty.
  ConstActivations infer_layers(ConstActivations x, size_t first, size_t end, Activations result = {});
  void plan_inference(const Shape& input);
  void plan_training(const Shape& input, int64_t largest);
  TensorView<const float> forward_and_keep(ConstActivations x);
  void use_gradient(size_t index, ConstActivations dy, float factor, const OnWeightGradient& use);
  ConstActivations first_gradient(TensorView<const float> dloss, float loss_scale);
  /// The buffer for the gradient of a layer's output, which is not `dy`: one that is kept, or one
  /// of the alternating two.
  Activations gradient_of(size_t index, const Shape& shape, ConstActivations dy);
  /// The fused epilogue of that gradient: it is stored as the gradient before the layer's ReLU.
  GradientStore store_of(size_t index);
  bool in_fp16() const { return network_->storage() == Precision::float16; }
  /// The step of the bytes in which layer `index` leaves its output, in inference; nothing: it is
  /// stored in the network's precision.
  std::optional<ByteScale> byte_scale(size_t index) const;
  /// A view of layer `index`'s output for a batch, in slot `slot`: 0 and 1 are `alternating_`, 2 is
  /// `features_`.
  Activations output_of(size_t index, int64_t batch, size_t slot);
  /// How layer `index` reads its inputs.
  Rotation rotation(size_t index) const;
  /// Whether x lies in memory of this pass.
  bool is_own(ConstActivations x) const;
  /// The last layer that the backend computes in one operation with layer `index`.
  size_t last_fused(size_t index, ConstActivations x) const;
  /// Runs a convolution, max pooling and, if y is flat, a flatten in one operation.
  void run_pooled(size_t index, Activations y, ConstActivations x);
  void run_layer(size_t index, Activations y, ConstActivations x, const LayerMemory& memory = {});
  /// The memory of a layer for the current batch.
  LayerMemory memory_of(size_t index);

  Network* network_;
  Training* training_ = nullptr;  ///< null: inference
  size_t begin_;
  Mode mode_;
  std::vector<Shape> shapes_;                      ///< of each layer's output, for the largest batch
  size_t features_end_ = 0;                        ///< the layer behind the flatten, or 0: it is not in the range
  int64_t at_once_ = 0;                            ///< inference: images that pass the features together
  std::array<Buffer<std::byte>, 2> alternating_;   ///< inference
  Buffer<std::byte> features_;                     ///< inference in parts: outputs of the flatten, of all images
  Buffer<uint8_t> invalid_;                        ///< inference in int8: ByteForm::invalid of each slot
  std::vector<Buffer<std::byte>> outputs_;         ///< training: one per layer
  std::vector<bool> passes_through_;               ///< training: layers whose output is their input
  std::vector<Tensor<uint8_t>> argmax_;            ///< training, max pooling only
  std::array<Buffer<std::byte>, 2> gradients_;     ///< of layer outputs, alternating
  std::vector<Buffer<std::byte>> kept_gradients_;  ///< training in float16: of layers with parameters
  Buffer<std::byte> converted_;                    ///< training in float16: a batch that came in float32
  Tensor<uint32_t> overflow_;                      ///< [1], training in float16
  Tensor<float> dw_;                               ///< as large as the largest weight of the range
  Tensor<float> dbias_;
  std::vector<Activations> live_;  ///< training: outputs of the last forward()
  ConstActivations input_;
  DropoutPlan dropout_;
  Replays replays_;  ///< inference
};

}  // namespace nibblenet
