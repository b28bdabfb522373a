#include "kernels/backend.h"

#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device == "auto" || device == "cpu") return std::make_unique<CpuBackend>(threads);
  if (device == "cuda") fail<UsageError>("--device cuda: this build has no CUDA backend; use --device cpu");
  fail<UsageError>("unknown device '{}'; supported: auto, cpu, cuda", device);
}

}  // namespace nibblenet
