#include "kernels/cudnn/libraries.h"

#include "engine/core/error.h"

namespace nibblenet {

const Cudnn& cudnn() {
  static const Cudnn functions{};
  return functions;
}

const CublasLt& cublas_lt() {
  static const CublasLt functions{};
  return functions;
}

std::optional<std::string> cudnn_problem() {
  try {
    cudnn();
    cublas_lt();
    return std::nullopt;
  } catch (const Error& error) {
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
