#pragma once

#include <memory>

#include "kernels/backend.h"

namespace nibblenet::testing {

/// A backend of the kind that this test program checks: the CPU's; or the CUDA one, on a GPU or
/// executed on the host. The same tests are linked with each. `threads` is for the CPU's.
std::unique_ptr<Backend> make_test_backend(int threads = 2);

}  // namespace nibblenet::testing
