#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/core/fold.h"
#include "engine/core/memory.h"
#include "engine/core/resample.h"
#include "engine/core/tensor.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/size.h"
#include "kernels/activations.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// A filter or matrix as it lies in a backend's memory: float32, float16, or packed n-bit codes that the backend's
/// kernels dequantize while they multiply.
class Weight {
 public:
  virtual ~Weight() = default;
  virtual const Shape& shape() const = 0;
  virtual bool packed() const = 0;
  /// The float32 values, [K, C, R, S] or [K, C], in the backend's memory. Throws Error for packed and float16 weights.
  virtual TensorView<float> values() = 0;
  /// To be called after values() were written to: derived copies are out of date.
  virtual void changed() = 0;
  /// Bytes this weight occupies, by what they are for (no biases).
  virtual ResidentSize resident() const = 0;
};

/// Position in the random sequence of one dropout call: the same key gives the same mask again in the backward pass.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
  /// Added to each element's index: element i draws random_bits(seed, stream, offset + i).
  uint64_t offset = 0;
};

struct SgdParameters {
  float learning_rate = 0.001F;
  float momentum = 0.9F;
  float weight_decay = 0.0F;
  bool keep_zeros = false;  ///< weights that are exactly 0 stay 0, and so do their velocities: they are pruned
};

/// What becomes of a gradient dx on its way to memory, where it is that of a ReLU's output and goes on in front of it:
/// work on values that are in registers anyway. The bits are those of relu_backward and find_overflow behind it.
struct GradientStore {
  ConstActivations relu_output;   ///< of dx's shape and precision: dx is 0 where this is not positive; no data: no ReLU
  TensorView<uint32_t> overflow;  ///< [1], becomes 1 where an element is not finite then; no data: nobody asks
};

/// What SGD moves of a layer, in the backend's memory.
struct TrainedLayer {
  Weight& weight;
  TensorView<float> bias;
  TensorView<float> weight_velocity;
  TensorView<float> bias_velocity;
};

/// How weights are rounded while they train: as packing them with these steps and this codebook would.
struct RoundingRule {
  GroupMap groups;                ///< of any granularity but `sorted`
  Codebook codebook;              ///< without zero points
  TensorView<const float> steps;  ///< [groups] scale / scale_to, in the backend's memory
  bool by_code = false;           ///< the codes stay: `latent` holds them, as numbers, in place of weights
};

/// What becomes of an image before it is prepared: it moves right and down by so many pixels, with black where nothing
/// came from, and is then mirrored.
struct Augmentation {
  int32_t right = 0;
  int32_t down = 0;
  int32_t mirrored = 0;  ///< 0 or 1
};

/// Prepares images of one size where a backend computes.
class ImagePreparer {
 public:
  virtual ~ImagePreparer() = default;
  /// x[N, crop, crop, 3] from images[N, height, width, 3], each changed as `augmentations`[N] says; all in the
  /// backend's memory.
  virtual void run(Activations x, TensorView<const uint8_t> images, TensorView<const Augmentation> augmentations) = 0;
};

/// Operations that were queued once, to be queued again by one call: with small batches, asking for an operation takes
/// longer than the operation.
class Recording {
 public:
  virtual ~Recording() = default;
  /// Queues the operations again, on the same memory.
  virtual void replay() = 0;
  /// Whether the backend's own scratch is where they expect it; if not, they have to be recorded again.
  virtual bool current() const = 0;
  /// How many there are.
  virtual int64_t operations() const = 0;
};

/// A convolution folded with the preparation of its images (engine/core/fold.h), in a backend's memory.
class FoldedConv2d {
 public:
  virtual ~FoldedConv2d() = default;
  /// y[N, P, Q, K] = epilogue(that convolution) of images[N, height, width, 3], bytes in the backend's memory.
  virtual void run(Activations y, TensorView<const uint8_t> images, Epilogue epilogue) = 0;
  /// Filters, with the tables that say which of them an output takes, as `weights`; biases.
  virtual ResidentSize resident() const = 0;
};

/// A device's memory as its driver reports it: other processes and the driver's own needs count too.
struct DeviceMemory {
  size_t used = 0;
  size_t total = 0;
};

/// Every operation of the network, forward and backward, on one kind of device. Outputs come first; shapes were
/// checked by layers/. All views lie in this backend's memory unless the name says host. Results are the same bits on
/// every run with the same thread count.
class Backend : public MemoryResource {
 public:
  virtual std::string name() const = 0;         ///< "cpu", "cuda", "cudnn"
  virtual std::string description() const = 0;  ///< for reports: device, library, threads

  /// Nothing where the backend's memory is the process's.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
  /// What the device has used since some moment; nothing where nobody counts. What runs beside us counts as well.
  virtual std::optional<double> joules() { return std::nullopt; }
  /// How many bytes of the backend's memory to write so that nothing older is left in the caches in front of it.
  virtual size_t bytes_that_empty_caches() const { return size_t{256} << 20; }
  /// What inference is fastest in.
  virtual Precision preferred_precision() const { return Precision::float32; }
  /// Throws UsageError for a precision of activations that the backend does not compute in.
  virtual void expect_support(Precision precision) const = 0;
  /// Waits until everything asked for is done: operations may return before.
  virtual void synchronize() {}

  /// Records what `work` asks of this backend, without doing it. `work` has run before with the same operands, so that
  /// nothing is left to allocate, and waits for nothing. Null, and `work` was not called, where there is nothing to
  /// gain.
  virtual std::unique_ptr<Recording> record(const std::function<void()>&) { return nullptr; }

  // Data
  virtual void copy_from_host(void* destination, const void* source, size_t bytes) = 0;
  virtual void copy_to_host(void* destination, const void* source, size_t bytes) = 0;
  /// The same without waiting: `destination` is written by finish_copies(), and stays until then; `source` may change
  /// by what is asked for later.
  virtual void copy_to_host_later(void* destination, const void* source, size_t bytes) {
    copy_to_host(destination, source, bytes);
  }
  /// Waits for copies, not for what was asked for behind them.
  virtual void finish_copies() {}
  /// `precision` float16: halves, for inference on float16 activations.
  virtual std::unique_ptr<Weight> make_weight(TensorView<const float> host_values,
                                              Precision precision = Precision::float32) = 0;
  /// `precision`: of the activations it will meet, for a backend that dequantizes; the product's own do not.
  virtual std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision = Precision::float32) = 0;

  /// nibblenet::quantize with the passes over the weights on the device: the same bits.
  virtual PackedTensor quantize(TensorView<const float> host_weights, const Scheme& scheme, std::string_view name) {
    return nibblenet::quantize(host_weights, scheme, name);
  }

  /// For training on float16 activations (Micikevicius 2018, arXiv 1710.03740): float32 values, and halves of them that
  /// products use and changed() renews. Throws UsageError where the backend trains in float32 only.
  virtual std::unique_ptr<Weight> make_trained_weight(TensorView<const float> /*host_values*/) {
    fail<UsageError>("--precision float16: --device {} trains in float32 only", name());
  }

  /// Null where images are as well prepared on the host.
  virtual std::unique_ptr<ImagePreparer> make_image_preparer(const ResampleTables&) { return nullptr; }

  /// `precision`: of what it is to write; its filters are stored in it.
  virtual std::unique_ptr<FoldedConv2d> make_folded_conv2d(const FoldedConvolution& folded, Precision precision) = 0;

  /// y[i] = x[rows[i]] over the first dimension; `rows` lies on the host.
  virtual void gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) = 0;

  /// y = factor x, rounded to y's precision; y may be x.
  virtual void convert(Activations y, ConstActivations x, float factor = 1.0F) = 0;

  // Inference runs on float32 or float16 activations, and y may be float32 where x is float16. Float16 ones ask for
  // packed or float16 weights, float32 ones for packed or float32 weights; sums are float32 always.

  // y[N,P,Q,K] = epilogue(conv(x[N,H,W,C], w[K,C,R,S]) + bias[K])
  virtual void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                              Epilogue epilogue) = 0;
  /// y[N,P,Q,K] = max_pool2d(conv2d_forward(x, w), pool) at once, or y[N,KPQ], the same as flatten_forward leaves it.
  /// False, and nothing was done, where the backend gains nothing by it.
  virtual bool conv2d_max_pool2d_forward(Activations, ConstActivations, Weight&, TensorView<const float> /*bias*/,
                                         Window, Epilogue, Window /*pool*/) {
    return false;
  }
  virtual void conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                                    const GradientStore& store = {}) = 0;
  virtual void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                      ConstActivations x, Window window) = 0;

  // y[N,K] = epilogue(x[N,C] w[K,C]^T + bias[K])
  virtual void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                              Epilogue epilogue) = 0;
  virtual void linear_backward_data(Activations dx, ConstActivations dy, Weight& w,
                                    const GradientStore& store = {}) = 0;
  virtual void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                      ConstActivations x) = 0;

  // y = max(x, 0); dx = dy where y > 0, else 0. dx may be dy.
  virtual void relu_forward(TensorView<float> y, TensorView<const float> x) = 0;
  virtual void relu_backward(Activations dx, ConstActivations dy, ConstActivations y) = 0;

  /// `argmax` (may be empty when no backward pass follows): position in the window, row by row, of the first maximum.
  virtual void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) = 0;
  virtual void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                                   const GradientStore& store = {}) = 0;

  // Output pixel p averages input rows [floor(p H / P), ceil((p + 1) H / P)), as PyTorch does.
  virtual void adaptive_average_pool2d_forward(Activations y, ConstActivations x) = 0;
  virtual void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy) = 0;

  // y[N, C H W] in PyTorch's order from x[N, H, W, C], and back.
  virtual void flatten_forward(Activations y, ConstActivations x) = 0;
  virtual void flatten_backward(Activations dx, ConstActivations dy) = 0;

  // y = x / (1 - p) where the element's draw is >= p, else 0. The backward pass is the same map of dy.
  virtual void dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
                       const GradientStore& store = {}) = 0;

  /// losses[n] = -log softmax(logits[n])[labels[n]]; dlogits = (softmax - onehot) * scale unless `dlogits` is empty.
  virtual void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                             TensorView<const int32_t> labels, float scale) = 0;
  /// The same against targets[N, K], of which each row is a distribution: losses[n] = -sum targets log softmax(logits);
  /// dlogits = (softmax - targets) * scale.
  virtual void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                                  TensorView<const float> targets, float scale) = 0;

  /// y[n] = index of the largest x[n, k], the first one of equals.
  virtual void argmax(TensorView<int32_t> y, TensorView<const float> x) = 0;

  /// g = dw + weight_decay w; v = momentum v + g; w -= learning_rate v (PyTorch's SGD, dampening 0). The first step
  /// starts from v = 0.
  virtual void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                        SgdParameters parameters) = 0;

  /// The weight and bias gradients of a convolution, or a linear layer, times `factor`, and sgd_step of both at once:
  /// the gradients are not stored, the bits are the same. False, and nothing was done, where the backend gains nothing
  /// by it. A bias that is 0 is no pruned one.
  virtual bool conv2d_backward_step(const TrainedLayer&, ConstActivations /*dy*/, ConstActivations /*x*/, Window,
                                    float /*factor*/, SgdParameters) {
    return false;
  }
  virtual bool linear_backward_step(const TrainedLayer&, ConstActivations /*dy*/, ConstActivations /*x*/,
                                    float /*factor*/, SgdParameters) {
    return false;
  }

  /// found[0] = 1 where an element of x is not finite, else it stays as it is.
  virtual void find_overflow(TensorView<uint32_t> found, ConstActivations x) = 0;
  /// What `store` asks for, of a dx that is in memory: behind operations that do not do it themselves.
  void finish_gradient(Activations dx, const GradientStore& store) {
    if (store.relu_output.data() != nullptr) relu_backward(dx, dx, store.relu_output);
    if (store.overflow.data() != nullptr) find_overflow(store.overflow, dx);
  }

  /// values = latent[K, ...] rounded: with x = latent / step of its group, the codebook value nearest to x times step,
  /// the bits that packing by the same rule and decoding would give. A group whose step is 0 holds zeros. With
  /// rule.by_code: the codebook value of code latent, times step.
  virtual void round_weights(TensorView<float> values, TensorView<const float> latent, const RoundingRule& rule) = 0;
  /// From dweights = dL/dvalues of the above, in place, to dL/dlatent as a straight-through estimate: passed on where x
  /// lies in the codebook's range, and outside of it where a step against the gradient leads back towards it; else 0.
  /// dsteps[groups] = sum of dweights (value - x), with the value alone outside of the range (LSQ, Esser 2020, eq. 3).
  /// dcodebook[256] = by code, the sum of dweights step over the weights that take it (Han 2016); may be empty. Groups
  /// whose step is 0 get no gradients. With rule.by_code, dsteps = sum of dweights value, and dweights stays as it is.
  virtual void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                                      TensorView<const float> latent, const RoundingRule& rule) = 0;
};

/// device: "cpu", "cuda", "cudnn" (NVIDIA's libraries, to compare with) or "auto" (CUDA when this build has it and
/// there is a GPU, else the CPU). `threads` 0: all cores. Where "auto" means the CPU although this build could use a
/// GPU, the description says why. Throws UsageError for a device this build or machine does not have.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);
/// Why "auto" means the CPU here, in one line; nothing when it means the GPU.
std::optional<std::string> cuda_unusable();

}  // namespace nibblenet
