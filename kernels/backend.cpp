#include "kernels/backend.h"

#include "kernels/cpu/backend_cpu.h"
#ifdef NIBBLENET_CUDA
#include "kernels/cuda/backend_cuda.h"
#endif

namespace nibblenet {
namespace {

void expect_known(const std::string& device) {
  if (device != "auto" && device != "cpu" && device != "cuda")
    fail<UsageError>("unknown device '{}'; supported: auto, cpu, cuda", device);
}

}  // namespace

#ifdef NIBBLENET_CUDA

std::optional<std::string> cuda_unusable() { return cuda_problem(); }

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  expect_known(device);
  const std::optional<std::string> problem = device == "cpu" ? std::nullopt : cuda_unusable();
  if (device == "cuda" && problem) fail<UsageError>("--device cuda: {}; use --device cpu", *problem);
  auto cpu = std::make_unique<CpuBackend>(threads);  // also sets the threads of what stays on the host
  if (device == "cpu") return cpu;
  if (!problem) return std::make_unique<CudaBackend>();
  cpu->add_to_description("no GPU: " + *problem);
  return cpu;
}

#else

std::optional<std::string> cuda_unusable() { return "this build has no CUDA backend"; }

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  expect_known(device);
  if (device == "cuda") fail<UsageError>("--device cuda: {}; use --device cpu", *cuda_unusable());
  return std::make_unique<CpuBackend>(threads);
}

#endif

}  // namespace nibblenet
