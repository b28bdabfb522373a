#include "kernels/cudnn/libraries.h"

#include "engine/core/error.h"
#include "kernels/cuda/device/shared_library.h"

namespace nibblenet {
namespace {

Cudnn load_cudnn() {
  const SharedLibrary library("libcudnn.so." + std::to_string(CUDNN_MAJOR), "NIBBLENET_CUDNN");
  Cudnn f{};
  library.find(f.get_version, "cudnnGetVersion");
  library.find(f.get_error_string, "cudnnGetErrorString");
  library.find(f.create, "cudnnCreate");
  library.find(f.destroy, "cudnnDestroy");
  library.find(f.set_stream, "cudnnSetStream");
  library.find(f.create_descriptor, "cudnnBackendCreateDescriptor");
  library.find(f.destroy_descriptor, "cudnnBackendDestroyDescriptor");
  library.find(f.set_attribute, "cudnnBackendSetAttribute");
  library.find(f.get_attribute, "cudnnBackendGetAttribute");
  library.find(f.finalize, "cudnnBackendFinalize");
  library.find(f.execute, "cudnnBackendExecute");
  library.find(f.create_tensor, "cudnnCreateTensorDescriptor");
  library.find(f.set_tensor, "cudnnSetTensor4dDescriptorEx");
  library.find(f.destroy_tensor, "cudnnDestroyTensorDescriptor");
  library.find(f.create_filter, "cudnnCreateFilterDescriptor");
  library.find(f.set_filter, "cudnnSetFilter4dDescriptor");
  library.find(f.destroy_filter, "cudnnDestroyFilterDescriptor");
  library.find(f.create_convolution, "cudnnCreateConvolutionDescriptor");
  library.find(f.set_convolution, "cudnnSetConvolution2dDescriptor");
  library.find(f.set_convolution_math, "cudnnSetConvolutionMathType");
  library.find(f.destroy_convolution, "cudnnDestroyConvolutionDescriptor");
  library.find(f.create_activation, "cudnnCreateActivationDescriptor");
  library.find(f.set_activation, "cudnnSetActivationDescriptor");
  library.find(f.destroy_activation, "cudnnDestroyActivationDescriptor");
  library.find(f.create_pooling, "cudnnCreatePoolingDescriptor");
  library.find(f.set_pooling, "cudnnSetPooling2dDescriptor");
  library.find(f.destroy_pooling, "cudnnDestroyPoolingDescriptor");
  library.find(f.find_forward, "cudnnFindConvolutionForwardAlgorithm");
  library.find(f.find_backward_data, "cudnnFindConvolutionBackwardDataAlgorithm");
  library.find(f.find_backward_filter, "cudnnFindConvolutionBackwardFilterAlgorithm");
  library.find(f.convolution_forward, "cudnnConvolutionBiasActivationForward");
  library.find(f.convolution_backward_data, "cudnnConvolutionBackwardData");
  library.find(f.convolution_backward_filter, "cudnnConvolutionBackwardFilter");
  library.find(f.convolution_backward_bias, "cudnnConvolutionBackwardBias");
  library.find(f.transform, "cudnnTransformTensor");
  library.find(f.activation_forward, "cudnnActivationForward");
  library.find(f.activation_backward, "cudnnActivationBackward");
  library.find(f.pooling_forward, "cudnnPoolingForward");
  return f;
}

CublasLt load_cublas_lt() {
  const SharedLibrary library("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), "NIBBLENET_CUBLASLT");
  CublasLt f{};
  library.find(f.get_version, "cublasLtGetVersion");
  library.find(f.get_status_string, "cublasLtGetStatusString");
  library.find(f.create, "cublasLtCreate");
  library.find(f.destroy, "cublasLtDestroy");
  library.find(f.create_matmul, "cublasLtMatmulDescCreate");
  library.find(f.set_matmul, "cublasLtMatmulDescSetAttribute");
  library.find(f.destroy_matmul, "cublasLtMatmulDescDestroy");
  library.find(f.create_layout, "cublasLtMatrixLayoutCreate");
  library.find(f.destroy_layout, "cublasLtMatrixLayoutDestroy");
  library.find(f.create_preference, "cublasLtMatmulPreferenceCreate");
  library.find(f.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  library.find(f.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  library.find(f.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.find(f.matmul, "cublasLtMatmul");
  return f;
}

}  // namespace

const Cudnn& cudnn() {
  static const Cudnn functions = load_cudnn();
  return functions;
}

const CublasLt& cublas_lt() {
  static const CublasLt functions = load_cublas_lt();
  return functions;
}

std::optional<std::string> cudnn_problem() {
  try {
    cudnn();
    cublas_lt();
    return std::nullopt;
  } catch (const CudaError& error) {
    return error.what();
  }
}

void check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) fail<CudaError>("{}: cuDNN says: {}", what, cudnn().get_error_string(status));
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail<CudaError>("{}: cuBLASLt says: {}", what, cublas_lt().get_status_string(status));
}

}  // namespace nibblenet
