#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "kernels/image_preparation.h"
#include "kernels/training.h"

// Launchers of convolutions that have a kernel of their own. Each one computes its grid, starts its
// kernels and does not wait. Views lie in device memory; kernels/inference.h and
// kernels/training.h have formulas and shapes.

namespace nibblenet::cuda {

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
/// Filters in `precision`, resident in `memory`. Float16 throws UsageError for more than 1,024 weights of a channel.
std::unique_ptr<FoldedConv2d> make_folded_conv2d(MemoryResource& memory, const FoldedConvolution& folded,
                                                 Precision precision, Stream& stream);

}  // namespace nibblenet::cuda
