#include <cuda_runtime_api.h>

#include "engine/core/shared_library.h"
#include "kernels/cuda/device/check.h"
#include "kernels/cuda/device/energy_meter.h"

namespace nibblenet {

EnergyMeter::EnergyMeter() {
  const SharedLibrary library("libnvidia-ml.so.1", "NIBBLENET_NVML");
  const auto initialise = library.find<int (*)()>("nvmlInit_v2");
  const auto device_at = library.find<int (*)(const char* bus, Device* device)>("nvmlDeviceGetHandleByPciBusId_v2");
  total_energy_ = library.find<decltype(total_energy_)>("nvmlDeviceGetTotalEnergyConsumption");
  int current = 0;
  char bus[32] = {};
  check(cudaGetDevice(&current), "cudaGetDevice");
  check(cudaDeviceGetPCIBusId(bus, sizeof(bus), current), "cudaDeviceGetPCIBusId");
  if (initialise() != 0 || device_at(bus, &device_) != 0) fail<CudaError>("NVML does not know the GPU at {}", bus);
}

std::optional<double> EnergyMeter::joules() const {
  unsigned long long millijoules = 0;
  if (total_energy_(device_, &millijoules) != 0) return std::nullopt;
  return 1e-3 * static_cast<double>(millijoules);
}

}  // namespace nibblenet
