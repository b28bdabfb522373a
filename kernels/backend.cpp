#include "kernels/backend.h"

#include "kernels/cpu/backend_cpu.h"
#ifdef NIBBLENET_CUDA
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/weights/weight_cuda.h"
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

#ifdef NIBBLENET_CUDA
class BorrowedWeightCuda final : public BorrowedWeight {
 public:
  explicit BorrowedWeightCuda(const PackedTensor& packed) : weight_(packed, best_layout(packed)) {}
  Weight& at(const DeviceParts& parts) override {
    weight_.lie_at(parts);
    return weight_;
  }

 private:
  WeightCuda weight_;
};
#endif

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

bool built_with_cuda() {
#ifdef NIBBLENET_CUDA
  return true;
#else
  return false;
#endif
}

std::optional<std::string> cuda_unusable() { return unusable("cuda"); }

std::unique_ptr<Backend> make_backend_on_stream([[maybe_unused]] int gpu, [[maybe_unused]] uintptr_t stream) {
  if (const std::optional<std::string> problem = unusable("cuda")) fail<UsageError>("device cuda: {}", *problem);
#ifdef NIBBLENET_CUDA
  choose_gpu(gpu);
  return std::make_unique<CudaBackend>(reinterpret_cast<CUstream_st*>(stream));
#else
  return nullptr;
#endif
}

std::unique_ptr<BorrowedWeight> borrow_weight([[maybe_unused]] const PackedTensor& packed) {
#ifdef NIBBLENET_CUDA
  return std::make_unique<BorrowedWeightCuda>(packed);
#else
  throw UsageError("this build has no CUDA backend");
#endif
}

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
