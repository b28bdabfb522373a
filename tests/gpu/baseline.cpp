#include "tests/support/baseline.h"

#include "kernels/cudnn/backend_cudnn.h"

namespace nibblenet::testing {

std::unique_ptr<Backend> make_baseline() {
  if (cudnn_problem()) return nullptr;
  return std::make_unique<CudnnBackend>();
}

}  // namespace nibblenet::testing
