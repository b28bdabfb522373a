#include "kernels/cpu/backend_cpu.h"
#include "tests/support/test_backend.h"

namespace nibblenet::testing {

std::unique_ptr<Backend> make_test_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace nibblenet::testing
