#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "kernels/training.h"

// Launchers of linear layers that have a kernel of their own. Each one computes its grid, starts its
// kernels and does not wait. Views lie in device memory; kernels/inference.h and
// kernels/training.h have formulas and shapes.

namespace nibblenet::cuda {

/// linear_forward for at most this many rows of x: weights are read once, by all multiprocessors.
inline constexpr int64_t skinny_batch = 16;
/// Whether it can be used: float16 activations of a multiple of 8 columns, on 16 bytes, and weights in superblocks.
bool is_skinny(ConstActivations x, const WeightCuda& w);
/// Throws Error where it cannot.
void skinny_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                           Epilogue epilogue, Workspace& workspace, Stream& stream);
/// linear_forward of at most this many outputs, any number of rows: false, and nothing was started, unless activations
/// are float16 of a multiple of 8 columns, on 16 bytes, and weights lie channel by channel.
inline constexpr int64_t few_outputs = 32;
[[nodiscard]] bool few_outputs_linear_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                              TensorView<const float> bias, Epilogue epilogue, Stream& stream);
/// Those of linear layers of up to 16 outputs, whatever their number: false, and nothing was started, unless
/// activations are float16, and C is a multiple of 8 and x, dx and the ReLU's output lie on 16 bytes.
[[nodiscard]] bool narrow_linear_backward_data(Activations dx, ConstActivations dy, TensorView<const float> w,
                                               const GradientStore& store, Stream& stream);
[[nodiscard]] bool narrow_linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                                 ConstActivations x, Stream& stream);
[[nodiscard]] bool narrow_linear_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x,
                                               float factor, SgdParameters parameters, Stream& stream);

}  // namespace nibblenet::cuda
