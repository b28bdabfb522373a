#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/image_preparation.h"
#include "kernels/training.h"

// Launchers of convolutions that have a kernel of their own. Each one computes its grid and starts
// its kernels, on views in device memory, and does not wait. Throws Error where its kernel does not
// fit (few_pixels_fit.h, few_channels_fit.h); kernels/cuda/routes.h chooses.

namespace nibblenet::cuda {

/// Few output pixels, for which large tiles would leave most of a large GPU idle. Weights that it
/// cannot multiply where they lie become superblocks of fp16 values in the workspace.
void few_pixels_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
/// Few channels, as a first convolution has.
void few_channels_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void few_channels_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// Filters in `precision`, resident in `memory`. Float16 throws UsageError for more than 1,024
/// weights of a channel.
std::unique_ptr<FoldedConv2d> make_folded_conv2d(MemoryResource& memory, const FoldedConvolution& folded,
                                                 Precision precision, Stream& stream);

}  // namespace nibblenet::cuda
