#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/training.h"

// Launchers of matrix products, for convolutions (implicit GEMM) and linear layers. Each computes
// its grid, starts its kernels on views in device memory, and does not wait. Throws Error where its
// kernel does not fit (mma_fit.h, wgmma_fit.h). kernels/cuda/routes.h chooses.

namespace nibblenet::cuda {

/// The readable reference kernels: they fit everything, and are slow.
void plain_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void plain_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void plain_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// mma.sync: the tensor cores of every GPU from compute capability 8.0 on.
void mma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void mma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void mma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// wgmma: the tensor cores of compute capability 9.0. Weights that do not train are first expanded
/// to rows of fp16 values in the workspace.
void wgmma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void wgmma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void wgmma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

/// wgmma by packed weights that the kernel itself unpacks. The first one calls one of the others,
/// by the kind of codes.
void wgmma_unpacked_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void wgmma_integers(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void wgmma_codebooks(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void wgmma_strings(const ForwardProduct& f, Workspace& workspace, Stream& stream);

}  // namespace nibblenet::cuda
