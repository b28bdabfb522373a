#include "kernels/backend.h"

#include "kernels/cpu/backend_cpu.h"
#ifdef NIBBLENET_CUDA
#include "kernels/cuda/backend_cuda.h"
#endif

namespace nibblenet {

#ifdef NIBBLENET_CUDA
const bool built_with_cuda = true;
std::optional<std::string> cuda_unusable() { return cuda_problem(); }
#else
const bool built_with_cuda = false;
std::optional<std::string> cuda_unusable() { return "this build has no CUDA backend"; }
#endif

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device != "auto" && device != "cpu" && device != "cuda")
    fail<UsageError>("unknown device '{}'; supported: auto, cpu, cuda", device);
  auto cpu = std::make_unique<CpuBackend>(threads);  // also sets the threads of what stays on the host
  if (device == "cpu") return cpu;
  const std::optional<std::string> problem = cuda_unusable();
  if (problem && device == "cuda") fail<UsageError>("--device cuda: {}; use --device cpu", *problem);
#ifdef NIBBLENET_CUDA
  if (!problem) return std::make_unique<CudaBackend>();
#endif
  return cpu;
}

}  // namespace nibblenet
