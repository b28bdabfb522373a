#pragma once

#include <cstdint>

#include "engine/quant/quantizer.h"
#include "kernels/activations.h"
#include "kernels/backend.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/weights/weight_cuda.h"

// The launchers behind the CUDA backend: each computes its grid and starts its kernels, and waits for nothing. All
// views lie in device memory; formulas and shapes are kernels/backend.h's.

namespace nibblenet {

/// When products run on kernels/cuda/gemm/wgmma.cuh instead of kernels for all GPUs.
enum class Warpgroups : uint8_t { never, where_they_pay, wherever_possible };

/// Where kernels that cut long reductions into parts leave what they have summed so far.
class Workspace {
 public:
  virtual ~Workspace() = default;
  /// At least `size` floats, valid until the next call.
  virtual float* floats(size_t size) = 0;
  /// At least `size` counters, valid until the next call: zeros, and to be left as zeros.
  virtual unsigned* counters(size_t size) = 0;
  /// Whether the GPU and the code for it have the products of warpgroups (wgmma), and when they are to be used.
  virtual Warpgroups warpgroups() const { return Warpgroups::never; }
};

namespace cuda {

void conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias, Window window,
                    Epilogue epilogue, Stream& stream);
void conv2d_backward_data(Activations dx, ConstActivations dy, TensorView<const float> w, Window window,
                          Stream& stream);
void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                            Window window, Workspace& workspace, Stream& stream);

void linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                    Epilogue epilogue, Stream& stream);
/// linear_forward for at most this many rows of x: weights are read once, by all multiprocessors.
inline constexpr int64_t skinny_batch = 16;
/// Whether it can be used: float16 activations of a multiple of 8 columns, on 16 bytes, and weights in superblocks.
bool is_skinny(ConstActivations x, const WeightCuda& w);
/// Throws Error where it cannot.
void skinny_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                           Epilogue epilogue, Workspace& workspace, Stream& stream);
/// linear_forward for more rows, and conv2d_forward, on the tensor cores: false, and nothing was started, unless
/// activations are float16, weights lie in superblocks that end where 64 channels do, and all of it on 16 bytes.
[[nodiscard]] bool tensor_linear_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                         TensorView<const float> bias, Epilogue epilogue, Workspace& workspace,
                                         Stream& stream);
[[nodiscard]] bool tensor_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                         TensorView<const float> bias, Window window, Epilogue epilogue,
                                         Workspace& workspace, Stream& stream);
/// The same with max pooling of its result, where y is float16 too and `pool` has no padding.
[[nodiscard]] bool tensor_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                                    TensorView<const float> bias, Window window, Epilogue epilogue,
                                                    Window pool, Workspace& workspace, Stream& stream);
/// Whether conv2d_forward has so few output pixels that large tiles would leave most of a large GPU idle, and has a
/// kernel for that: float16 activations of a multiple of 64 channels, on 16 bytes, and weights that are neither float32
/// nor rows of halves that train. Those that do not lie in superblocks become superblocks of halves in the workspace.
bool has_few_pixels(ConstActivations x, const WeightCuda& w, Window window);
/// Throws Error where it has none.
void few_pixels_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                               Window window, Epilogue epilogue, Workspace& workspace, Stream& stream);
/// And max pooling of y, and flattening where y is [N, K P Q], in the same kernel: false, and nothing was started,
/// unless y is float16 on 16 bytes, K a multiple of 8, and windows, of up to 15 x 15, have no padding.
[[nodiscard]] bool few_pixels_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                                        TensorView<const float> bias, Window window, Epilogue epilogue,
                                                        Window pool, Workspace& workspace, Stream& stream);
/// conv2d_forward of few channels on the tensor cores: false, and nothing was started, unless activations are float16,
/// weights lie channel by channel, windows begin at whole words of x, and filters are short.
[[nodiscard]] bool first_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                        TensorView<const float> bias, Window window, Epilogue epilogue, Stream& stream);
/// The same with max pooling of its result, of windows of 3 x 3 at stride 2 without padding, for rows of 29 to 56
/// results.
[[nodiscard]] bool first_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                                   TensorView<const float> bias, Window window, Epilogue epilogue,
                                                   Window pool, Stream& stream);
/// linear_forward of at most this many outputs, any number of rows: false, and nothing was started, unless activations
/// are float16 of a multiple of 8 columns, on 16 bytes, and weights lie channel by channel.
inline constexpr int64_t few_outputs = 32;
[[nodiscard]] bool few_outputs_linear_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                              TensorView<const float> bias, Epilogue epilogue, Stream& stream);
void linear_backward_data(Activations dx, ConstActivations dy, TensorView<const float> w, Stream& stream);
void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                            Workspace& workspace, Stream& stream);
/// Forward products and gradients by warpgroups: false, and nothing was started, unless activations are float16, C and
/// K multiples of 8, everything lies on 16 bytes, and for dx the stride is 1. Weights that do not train are turned into
/// rows of halves in the workspace first, whatever they are stored as.
[[nodiscard]] bool warpgroup_linear_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                            TensorView<const float> bias, Epilogue epilogue, Workspace& workspace,
                                            Stream& stream);
[[nodiscard]] bool warpgroup_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                            TensorView<const float> bias, Window window, Epilogue epilogue,
                                            Workspace& workspace, Stream& stream);
[[nodiscard]] bool warpgroup_conv2d_backward_data(Activations dx, ConstActivations dy, const WeightCuda& w,
                                                  Window window, const GradientStore& store, Workspace& workspace,
                                                  Stream& stream);
[[nodiscard]] bool warpgroup_linear_backward_data(Activations dx, ConstActivations dy, const WeightCuda& w,
                                                  const GradientStore& store, Workspace& workspace, Stream& stream);
/// The four gradients on the tensor cores: false, and nothing was started, unless activations are float16, K is a
/// multiple of 8, dy lies on 16 bytes, and for dx likewise C and dx, and the weight is one that trains in halves.
[[nodiscard]] bool tensor_conv2d_backward_data(Activations dx, ConstActivations dy, WeightCuda& w, Window window,
                                               const GradientStore& store, Workspace& workspace, Stream& stream);
[[nodiscard]] bool tensor_conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                                 ConstActivations x, Window window, Workspace& workspace,
                                                 Stream& stream);
[[nodiscard]] bool tensor_linear_backward_data(Activations dx, ConstActivations dy, WeightCuda& w,
                                               const GradientStore& store, Workspace& workspace, Stream& stream);
[[nodiscard]] bool tensor_linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                                 ConstActivations x, Workspace& workspace, Stream& stream);
/// And with a step of SGD in place of stored gradients.
[[nodiscard]] bool tensor_conv2d_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x,
                                               Window window, float factor, SgdParameters parameters,
                                               Workspace& workspace, Stream& stream);
[[nodiscard]] bool tensor_linear_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x,
                                               float factor, SgdParameters parameters, Workspace& workspace,
                                               Stream& stream);

/// Those of linear layers of up to 16 outputs, whatever their number: false, and nothing was started, unless
/// activations are float16, and C is a multiple of 8 and x, dx and the ReLU's output lie on 16 bytes.
[[nodiscard]] bool narrow_linear_backward_data(Activations dx, ConstActivations dy, TensorView<const float> w,
                                               const GradientStore& store, Stream& stream);
[[nodiscard]] bool narrow_linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                                 ConstActivations x, Stream& stream);
[[nodiscard]] bool narrow_linear_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x,
                                               float factor, SgdParameters parameters, Stream& stream);

void relu_forward(TensorView<float> y, TensorView<const float> x, Stream& stream);
void relu_backward(Activations dx, ConstActivations dy, ConstActivations y, Stream& stream);
void dropout(Activations y, ConstActivations x, float probability, DropoutKey key, Stream& stream);
/// For halves, eight at a time, with the same bits: false, and nothing was started, unless their number is a multiple
/// of 8 and all of it lies on 16 bytes.
[[nodiscard]] bool half_dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
                                const GradientStore& store, Stream& stream);
/// The copies in halves of a weight that trains, from its values.
void renew_halves(WeightCuda& w, Stream& stream);
void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw, SgdParameters parameters,
              Stream& stream);
void round_weights(TensorView<float> values, TensorView<const float> latent, const RoundingRule& rule, Stream& stream);
void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                            TensorView<const float> latent, const RoundingRule& rule, Workspace& workspace,
                            Stream& stream);
void find_overflow(TensorView<uint32_t> found, ConstActivations x, Stream& stream);
void convert(Activations y, ConstActivations x, float factor, Stream& stream);
/// `rows` lies in device memory.
void gather_rows(TensorView<float> y, TensorView<const float> x, const int64_t* rows, Stream& stream);

void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window, Stream& stream);
void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                         Stream& stream);
/// Both for halves, eight channels a thread, with the same bits: false, and nothing was started, unless C is a multiple
/// of 8, windows are 3 x 3 at stride 2 without padding, and all of it lies on 16 bytes, positions on 8.
[[nodiscard]] bool half_max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window,
                                           Stream& stream);
[[nodiscard]] bool half_max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                                            Window window, const GradientStore& store, Stream& stream);
void adaptive_average_pool2d_forward(Activations y, ConstActivations x, Stream& stream);
void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy, Stream& stream);
void flatten_forward(Activations y, ConstActivations x, Stream& stream);
void flatten_backward(Activations dx, ConstActivations dy, Stream& stream);

void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                   TensorView<const int32_t> labels, float scale, Stream& stream);
void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                        TensorView<const float> targets, float scale, Stream& stream);
void argmax(TensorView<int32_t> y, TensorView<const float> x, Stream& stream);

/// The tables become resident in `memory`.
std::unique_ptr<ImagePreparer> make_image_preparer(MemoryResource& memory, const ResampleTables& tables,
                                                   Stream& stream);

/// Filters in `precision`, resident in `memory`. Float16 throws UsageError for more than 1,024 weights of a channel.
std::unique_ptr<FoldedConv2d> make_folded_conv2d(MemoryResource& memory, const FoldedConvolution& folded,
                                                 Precision precision, Stream& stream);

/// keys[3, G]: for every group the bits of -lowest, of highest, and of |largest| above the complement of its index.
/// `blocks`: group of each weight, or null where `map` knows it.
void find_extremes(uint64_t* keys, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
                   Stream& stream);
/// What the keys mean; `weights` and `keys` lie on the host.
std::vector<Extremes> extremes_from_keys(std::span<const uint64_t> keys, TensorView<const float> weights);
/// codes[K, stride] of weights [K, …]; padding is zeros.
void encode(TensorView<uint8_t> codes, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
            const Step* steps, const Codebook& codebook, bool affine, Stream& stream);

}  // namespace cuda
}  // namespace nibblenet
