#pragma once

#include <cublasLt.h>
#include <cudnn.h>

#include <optional>
#include <string>

#include "engine/core/shared_library.h"

/// Declares a pointer to a function, and finds the function in the member `library` by its name.
#define NIBBLENET_FUNCTION(pointer, function) decltype(&function) pointer = library.find<decltype(&function)>(#function)

namespace nibblenet {

/// The functions of cuDNN 9 that the baseline calls, loaded at run time: programs start without it.
struct Cudnn {
  SharedLibrary library{"libcudnn.so." + std::to_string(CUDNN_MAJOR), "NIBBLENET_CUDNN"};
  NIBBLENET_FUNCTION(get_version, cudnnGetVersion);
  NIBBLENET_FUNCTION(get_error_string, cudnnGetErrorString);
  NIBBLENET_FUNCTION(create, cudnnCreate);
  NIBBLENET_FUNCTION(destroy, cudnnDestroy);
  NIBBLENET_FUNCTION(set_stream, cudnnSetStream);

  /// The graph interface.
  NIBBLENET_FUNCTION(create_descriptor, cudnnBackendCreateDescriptor);
  NIBBLENET_FUNCTION(destroy_descriptor, cudnnBackendDestroyDescriptor);
  NIBBLENET_FUNCTION(set_attribute, cudnnBackendSetAttribute);
  NIBBLENET_FUNCTION(get_attribute, cudnnBackendGetAttribute);
  NIBBLENET_FUNCTION(finalize, cudnnBackendFinalize);
  NIBBLENET_FUNCTION(execute, cudnnBackendExecute);

  /// Descriptors of the legacy interface.
  NIBBLENET_FUNCTION(create_tensor, cudnnCreateTensorDescriptor);
  NIBBLENET_FUNCTION(set_tensor, cudnnSetTensor4dDescriptorEx);
  NIBBLENET_FUNCTION(destroy_tensor, cudnnDestroyTensorDescriptor);
  NIBBLENET_FUNCTION(create_filter, cudnnCreateFilterDescriptor);
  NIBBLENET_FUNCTION(set_filter, cudnnSetFilter4dDescriptor);
  NIBBLENET_FUNCTION(destroy_filter, cudnnDestroyFilterDescriptor);
  NIBBLENET_FUNCTION(create_convolution, cudnnCreateConvolutionDescriptor);
  NIBBLENET_FUNCTION(set_convolution, cudnnSetConvolution2dDescriptor);
  NIBBLENET_FUNCTION(set_convolution_math, cudnnSetConvolutionMathType);
  NIBBLENET_FUNCTION(destroy_convolution, cudnnDestroyConvolutionDescriptor);
  NIBBLENET_FUNCTION(create_activation, cudnnCreateActivationDescriptor);
  NIBBLENET_FUNCTION(set_activation, cudnnSetActivationDescriptor);
  NIBBLENET_FUNCTION(destroy_activation, cudnnDestroyActivationDescriptor);
  NIBBLENET_FUNCTION(create_pooling, cudnnCreatePoolingDescriptor);
  NIBBLENET_FUNCTION(set_pooling, cudnnSetPooling2dDescriptor);
  NIBBLENET_FUNCTION(destroy_pooling, cudnnDestroyPoolingDescriptor);

  /// Its operations.
  NIBBLENET_FUNCTION(find_forward, cudnnFindConvolutionForwardAlgorithm);
  NIBBLENET_FUNCTION(find_backward_data, cudnnFindConvolutionBackwardDataAlgorithm);
  NIBBLENET_FUNCTION(find_backward_filter, cudnnFindConvolutionBackwardFilterAlgorithm);
  NIBBLENET_FUNCTION(convolution_forward, cudnnConvolutionBiasActivationForward);
  NIBBLENET_FUNCTION(convolution_backward_data, cudnnConvolutionBackwardData);
  NIBBLENET_FUNCTION(convolution_backward_filter, cudnnConvolutionBackwardFilter);
  NIBBLENET_FUNCTION(convolution_backward_bias, cudnnConvolutionBackwardBias);
  NIBBLENET_FUNCTION(transform, cudnnTransformTensor);
  NIBBLENET_FUNCTION(activation_forward, cudnnActivationForward);
  NIBBLENET_FUNCTION(activation_backward, cudnnActivationBackward);
  NIBBLENET_FUNCTION(pooling_forward, cudnnPoolingForward);
};

/// Functions of cuBLASLt 13 that the baseline calls.
struct CublasLt {
  SharedLibrary library{"libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), "NIBBLENET_CUBLASLT"};
  NIBBLENET_FUNCTION(get_version, cublasLtGetVersion);
  NIBBLENET_FUNCTION(get_status_string, cublasLtGetStatusString);
  NIBBLENET_FUNCTION(create, cublasLtCreate);
  NIBBLENET_FUNCTION(destroy, cublasLtDestroy);
  NIBBLENET_FUNCTION(create_matmul, cublasLtMatmulDescCreate);
  NIBBLENET_FUNCTION(set_matmul, cublasLtMatmulDescSetAttribute);
  NIBBLENET_FUNCTION(destroy_matmul, cublasLtMatmulDescDestroy);
  NIBBLENET_FUNCTION(create_layout, cublasLtMatrixLayoutCreate);
  NIBBLENET_FUNCTION(destroy_layout, cublasLtMatrixLayoutDestroy);
  NIBBLENET_FUNCTION(create_preference, cublasLtMatmulPreferenceCreate);
  NIBBLENET_FUNCTION(set_preference, cublasLtMatmulPreferenceSetAttribute);
  NIBBLENET_FUNCTION(destroy_preference, cublasLtMatmulPreferenceDestroy);
  NIBBLENET_FUNCTION(get_heuristic, cublasLtMatmulAlgoGetHeuristic);
  NIBBLENET_FUNCTION(matmul, cublasLtMatmul);
};

/// The library that NIBBLENET_CUDNN names, else the system's. Throws CudaError when it cannot be
/// loaded.
const Cudnn& cudnn();
/// The library that NIBBLENET_CUBLASLT names, else the system's. Throws CudaError when it cannot be
/// loaded.
const CublasLt& cublas_lt();
/// Why one of the two cannot be loaded, in one line; nothing if both can.
std::optional<std::string> cudnn_problem();

/// Throw CudaError with `what` and the library's error text if the call failed.
void check(cudnnStatus_t status, const char* what);
void check(cublasStatus_t status, const char* what);

}  // namespace nibblenet

#undef NIBBLENET_FUNCTION
