#pragma once

#include "kernels/cuda/device/device.h"
#include "kernels/image_preparation.h"
#include "kernels/training.h"

// Launchers of operations on activations, losses and images. Each computes its grid, starts its
// kernels and does not wait. Views lie in device memory. kernels/inference.h and kernels/training.h
// have the formulas and shapes.

namespace nibblenet::cuda {

/// One thread per element, float32 or fp16.
void relu_forward(TensorView<float> y, TensorView<const float> x, Stream& stream);
void relu_backward(Activations dx, ConstActivations dy, ConstActivations y, Stream& stream);
void dropout(Activations y, ConstActivations x, float probability, DropoutKey key, Stream& stream);
/// For fp16 values, eight per thread, with the same bits as dropout. Requires half_dropout::fits().
void half_dropout(Activations y, ConstActivations x, float probability, DropoutKey key, const GradientStore& store,
                  Stream& stream);
void add(TensorView<float> y, TensorView<const float> x, Stream& stream);
void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw, SgdParameters parameters,
              Stream& stream);
void move_average(TensorView<float> average, TensorView<const float> x, float share, Stream& stream);
void find_overflow(TensorView<uint32_t> found, ConstActivations x, Stream& stream);
void convert(Activations y, ConstActivations x, float factor, Stream& stream);
/// One thread per eight elements, float32 or fp16.
void hadamard(Activations y, ConstActivations x, Rotation rotation, Stream& stream);
/// `rows` lies in device memory.
void gather_rows(TensorView<float> y, TensorView<const float> x, const int64_t* rows, Stream& stream);
void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window, Stream& stream);
void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                         Stream& stream);
/// For fp16 values, eight channels per thread, with the same bits as the general kernels: windows
/// of 3 x 3 at stride 2 without padding. Requires half_pooling::fits(), or fits_backward().
void half_max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Stream& stream);
void half_max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                              const GradientStore& store, Stream& stream);
void adaptive_average_pool2d_forward(Activations y, ConstActivations x, Stream& stream);
void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy, Stream& stream);
void flatten_forward(Activations y, ConstActivations x, Stream& stream);
void flatten_backward(Activations dx, ConstActivations dy, Stream& stream);
void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                   TensorView<const int32_t> labels, float scale, Stream& stream);
void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                        TensorView<const float> targets, float scale, Stream& stream);
/// Copies the tables into `memory`.
std::unique_ptr<ImagePreparer> make_image_preparer(MemoryResource& memory, const ResampleTables& tables,
                                                   Stream& stream);

}  // namespace nibblenet::cuda
