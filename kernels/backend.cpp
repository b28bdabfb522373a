#include "kernels/backend.h"

#include "kernels/cpu/backend_cpu.h"
#ifdef NIBBLENET_CUDA
#include "kernels/cuda/backend_cuda.h"
#endif
#ifdef NIBBLENET_CUDNN
#include "kernels/cudnn/backend_cudnn.h"
#endif

namespace nibblenet {
namespace {

/// Why this build and machine have no `device`; nothing when they do.
std::optional<std::string> unusable(const std::string& device) {
  if (device == "cpu") return std::nullopt;
#ifdef NIBBLENET_CUDA
  if (auto problem = cuda_problem()) return problem;
#else
  return "this build has no CUDA backend";
#endif
  if (device == "cudnn") {
#ifdef NIBBLENET_CUDNN
    return cudnn_problem();
#else
    return "this build was made without cuDNN's headers";
#endif
  }
  return std::nullopt;
}

/// For a device that is usable.
std::unique_ptr<Backend> make_gpu_backend([[maybe_unused]] const std::string& device, [[maybe_unused]] int gpu) {
#ifdef NIBBLENET_CUDA
  choose_gpu(gpu);
#endif
#ifdef NIBBLENET_CUDNN
  if (device == "cudnn") return std::make_unique<CudnnBackend>();
#endif
#ifdef NIBBLENET_CUDA
  return std::make_unique<CudaBackend>();
#else
  return nullptr;
#endif
}

}  // namespace

std::optional<std::string> cuda_unusable() { return unusable("cuda"); }

std::unique_ptr<Backend> make_backend(const std::string& device, int threads, int gpu) {
  if (device != "auto" && device != "cpu" && device != "cuda" && device != "cudnn")
    fail<UsageError>("unknown device '{}'; supported: auto, cpu, cuda, cudnn", device);
  const std::optional<std::string> problem = unusable(device);
  if (problem && device != "auto") fail<UsageError>("--device {}: {}; use --device cpu", device, *problem);
  auto cpu = std::make_unique<CpuBackend>(threads);  // also sets the threads of what stays on the host
  if (device == "cpu") return cpu;
  if (!problem) return make_gpu_backend(device, gpu);
#ifdef NIBBLENET_CUDA
  cpu->add_to_description("no GPU: " + *problem);
#endif
  return cpu;
}

}  // namespace nibblenet
