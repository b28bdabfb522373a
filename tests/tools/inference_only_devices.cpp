#include "tests/tools/inference_only_backend.h"

// In place of kernels/backend.cpp: whatever --device says, it is the backend that only infers.

namespace nibblenet {

std::optional<std::string> cuda_unusable() { return "this program only infers"; }

std::unique_ptr<Backend> make_backend(const std::string&, int threads, int) {
  return std::make_unique<testing::InferenceOnlyBackend>(threads);
}

}  // namespace nibblenet
