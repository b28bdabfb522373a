#pragma once

#include <memory>

#include "kernels/backend.h"

namespace nibblenet::testing {

/// The baseline backend: over cuDNN and cuBLASLt themselves, or over their stand-in on the host.
/// Null where these libraries are not installed.
std::unique_ptr<Backend> make_baseline();

}  // namespace nibblenet::testing
