#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/training.h"

// Launchers of the linear-layer kernels. Each computes its grid, starts its kernels on views in
// device memory, and does not wait. Throws Error where its kernel does not fit (few_rows_fit.h,
// few_outputs_fit.h). kernels/cuda/routes.h chooses.

namespace nibblenet::cuda {

/// Small batches (GEMV-like): all multiprocessors read the weights, once.
void few_rows_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
/// few_rows_forward() for weights in string blocks.
void few_rows_strings_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
/// Few outputs and any number of rows, as in a classifier's last layer.
void few_outputs_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream);
void few_outputs_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream);
void few_outputs_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream);

}  // namespace nibblenet::cuda
