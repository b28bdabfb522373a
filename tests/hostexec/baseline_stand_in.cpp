#include <cstdlib>

#include "kernels/cudnn/backend_cudnn.h"
#include "tests/support/baseline.h"

namespace nibblenet::testing {

std::unique_ptr<Backend> make_baseline() {
  setenv("NIBBLENET_CUDNN", NIBBLENET_FAKE_CUDNN, 1);
  setenv("NIBBLENET_CUBLASLT", NIBBLENET_FAKE_CUDNN, 1);
  return std::make_unique<CudnnBackend>();
}

}  // namespace nibblenet::testing
