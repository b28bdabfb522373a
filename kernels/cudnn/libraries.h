#pragma once

#include <cublasLt.h>
#include <cudnn.h>

#include <optional>
#include <string>

namespace nibblenet {

/// Functions of cuDNN 9 that the baseline calls. They are loaded at run time, so that our programs
/// start without it.
struct Cudnn {
  decltype(&cudnnGetVersion) get_version;
  decltype(&cudnnGetErrorString) get_error_string;
  decltype(&cudnnCreate) create;
  decltype(&cudnnDestroy) destroy;
  decltype(&cudnnSetStream) set_stream;

  decltype(&cudnnBackendCreateDescriptor) create_descriptor;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
  decltype(&cudnnBackendSetAttribute) set_attribute;
  decltype(&cudnnBackendGetAttribute) get_attribute;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;

  decltype(&cudnnCreateTensorDescriptor) create_tensor;
  decltype(&cudnnSetTensor4dDescriptorEx) set_tensor;
  decltype(&cudnnDestroyTensorDescriptor) destroy_tensor;
  decltype(&cudnnCreateFilterDescriptor) create_filter;
  decltype(&cudnnSetFilter4dDescriptor) set_filter;
  decltype(&cudnnDestroyFilterDescriptor) destroy_filter;
  decltype(&cudnnCreateConvolutionDescriptor) create_convolution;
  decltype(&cudnnSetConvolution2dDescriptor) set_convolution;
  decltype(&cudnnSetConvolutionMathType) set_convolution_math;
  decltype(&cudnnDestroyConvolutionDescriptor) destroy_convolution;
  decltype(&cudnnCreateActivationDescriptor) create_activation;
  decltype(&cudnnSetActivationDescriptor) set_activation;
  decltype(&cudnnDestroyActivationDescriptor) destroy_activation;
  decltype(&cudnnCreatePoolingDescriptor) create_pooling;
  decltype(&cudnnSetPooling2dDescriptor) set_pooling;
  decltype(&cudnnDestroyPoolingDescriptor) destroy_pooling;

  decltype(&cudnnFindConvolutionForwardAlgorithm) find_forward;
  decltype(&cudnnFindConvolutionBackwardDataAlgorithm) find_backward_data;
  decltype(&cudnnFindConvolutionBackwardFilterAlgorithm) find_backward_filter;
  decltype(&cudnnConvolutionBiasActivationForward) convolution_forward;
  decltype(&cudnnConvolutionBackwardData) convolution_backward_data;
  decltype(&cudnnConvolutionBackwardFilter) convolution_backward_filter;
  decltype(&cudnnConvolutionBackwardBias) convolution_backward_bias;
  decltype(&cudnnTransformTensor) transform;
  decltype(&cudnnActivationForward) activation_forward;
  decltype(&cudnnActivationBackward) activation_backward;
  decltype(&cudnnPoolingForward) pooling_forward;
};

/// Functions of cuBLASLt 13 that the baseline calls.
struct CublasLt {
  decltype(&cublasLtGetVersion) get_version;
  decltype(&cublasLtGetStatusString) get_status_string;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) create_matmul;
  decltype(&cublasLtMatmulDescSetAttribute) set_matmul;
  decltype(&cublasLtMatmulDescDestroy) destroy_matmul;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmul) matmul;
};

/// The library that NIBBLENET_CUDNN names, else the system's. Throws CudaError when it cannot be
/// loaded.
const Cudnn& cudnn();
/// The library that NIBBLENET_CUBLASLT names, else the system's. Throws CudaError when it cannot be
/// loaded.
const CublasLt& cublas_lt();
/// Why one of the two cannot be loaded, in one line. Empty if both can.
std::optional<std::string> cudnn_problem();

/// Throw CudaError with `what` and the library's error text if the call failed.
void check(cudnnStatus_t status, const char* what);
void check(cublasStatus_t status, const char* what);

}  // namespace nibblenet
