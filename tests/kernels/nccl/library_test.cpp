#include "kernels/nccl/library.h"

#include <gtest/gtest.h>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

/// That of the system, where there is one: it tells its version without a GPU.
TEST(NcclLibrary, HasEveryFunctionThatWeCall) {
  try {
    const std::string version = nccl().version();
    EXPECT_EQ(version.rfind(std::to_string(NCCL_MAJOR) + ".", 0), 0U) << version;
  } catch (const Error& error) {
    if (std::string(error.what()).starts_with("cannot load")) GTEST_SKIP() << error.what();
    throw;
  }
}

}  // namespace
}  // namespace nibblenet
