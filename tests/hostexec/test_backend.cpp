#include "tests/support/test_backend.h"

#include "kernels/cuda/backend_cuda.h"

namespace nibblenet::testing {

std::unique_ptr<Backend> make_test_backend(int) { return std::make_unique<CudaBackend>(); }

}  // namespace nibblenet::testing
