#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "kernels/training.h"

// Launchers of matrix products: convolutions (implicit GEMM) and linear layers alike. Each one
// computes its grid, starts its kernels and does not wait. Views lie in device memory;
// kernels/inference.h and kernels/training.h have formulas and shapes.

namespace nibblenet::cuda {

void conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias, Window window,
                    Epilogue epilogue, Stream& stream);
void conv2d_backward_data(Activations dx, ConstActivations dy, TensorView<const float> w, Window window,
                          Stream& stream);
void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                            Window window, Workspace& workspace, Stream& stream);
void linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                    Epilogue epilogue, Stream& stream);
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

}  // namespace nibblenet::cuda
