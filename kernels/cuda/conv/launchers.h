#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/image_preparation.h"
#include "kernels/training.h"

// Launchers of the convolution kernels. Each computes its grid, starts its kernels on views in
// device memory, and does not wait. Throws Error where its kernel does not fit (few_pixels_fit.h,
// few_channels_fit.h). kernels/cuda/routes.h chooses.

namespace nibblenet::cuda {

/// Few output pixels, where large tiles would leave most of the GPU idle. Weights that the kernel
/// cannot read in place become superblocks of fp16 values in the workspace.
void few_pixels_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
/// Few input channels, as in a first convolution.
void few_channels_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void few_channels_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// A folded convolution with filters in `precision`, kept in `memory`. Float16 throws UsageError
/// for more than 1,024 weights per channel.
std::unique_ptr<FoldedConv2d> make_folded_conv2d(MemoryResource& memory, const FoldedConvolution& folded,
                                                 Precision precision, Stream& stream);

}  // namespace nibblenet::cuda
