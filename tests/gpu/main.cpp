#include <fmt/core.h>
#include <gtest/gtest.h>

#include "kernels/cuda/backend_cuda.h"
#include "tests/support/test_backend.h"

namespace nibblenet::testing {

std::unique_ptr<Backend> make_test_backend(int) { return std::make_unique<CudaBackend>(); }

}  // namespace nibblenet::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto problem = nibblenet::cuda_problem();
  if (problem && !GTEST_FLAG_GET(list_tests)) {
    fmt::print("[  SKIPPED ] every test, since {}\n", *problem);
    return 0;
  }
  return RUN_ALL_TESTS();
}
