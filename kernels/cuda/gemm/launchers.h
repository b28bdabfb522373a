#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/training.h"

// Launchers of matrix products: convolutions (implicit GEMM) and linear layers alike. Each one
// computes its grid and starts its kernels, on views in device memory, and does not wait. Throws
// Error where its kernel does not fit (mma_fit.h, wgmma_fit.h); kernels/cuda/routes.h chooses.

namespace nibblenet::cuda {

/// The readable reference: fits everything, and is slow.
void plain_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void plain_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void plain_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// On the tensor cores of every GPU from compute capability 8.0 on (mma.sync).
void mma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void mma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void mma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// On those of compute capability 9.0 (wgmma). Weights that do not train are expanded to rows of
/// fp16 values in the workspace first.
void wgmma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void wgmma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void wgmma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

}  // namespace nibblenet::cuda
