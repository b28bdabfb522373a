#include <cuda_runtime_api.h>

#include "engine/core/shared_library.h"
#include "kernels/cuda/device/check.h"
#include "kernels/cuda/device/nvml.h"

namespace nibblenet {

Nvml::Nvml() {
  const SharedLibrary library("libnvidia-ml.so.1", "NIBBLENET_NVML");
  const auto initialise = library.find<int (*)()>("nvmlInit_v2");
  const auto device_at = library.find<int (*)(const char* bus, Device* device)>("nvmlDeviceGetHandleByPciBusId_v2");
  total_energy_ = library.find<decltype(total_energy_)>("nvmlDeviceGetTotalEnergyConsumption");
  driver_version_ = library.find<decltype(driver_version_)>("nvmlSystemGetDriverVersion");
  clock_ = library.find<ReadingOf>("nvmlDeviceGetClockInfo");
  temperature_ = library.find<ReadingOf>("nvmlDeviceGetTemperature");
  power_ = library.find<Reading>("nvmlDeviceGetPowerUsage");
  int current = 0;
  char bus[32] = {};
  check(cudaGetDevice(&current), "cudaGetDevice");
  check(cudaDeviceGetPCIBusId(bus, sizeof(bus), current), "cudaDeviceGetPCIBusId");
  if (initialise() != 0 || device_at(bus, &device_) != 0) fail<CudaError>("NVML does not know the GPU at {}", bus);
}

std::optional<double> Nvml::joules() const {
  unsigned long long millijoules = 0;
  if (total_energy_(device_, &millijoules) != 0) return std::nullopt;
  return 1e-3 * static_cast<double>(millijoules);
}

DeviceState Nvml::state() const {
  constexpr int sm = 1, memory = 2, of_gpu = 0;
  const auto read = [this](ReadingOf reading, int kind) {
    unsigned value = 0;
    return reading(device_, kind, &value) == 0 ? static_cast<int>(value) : 0;
  };
  char driver[80] = {};
  if (driver_version_(driver, sizeof(driver)) != 0) driver[0] = '\0';
  unsigned milliwatts = 0;
  if (power_(device_, &milliwatts) != 0) milliwatts = 0;
  return {.driver = driver,
          .sm_mhz = read(clock_, sm),
          .memory_mhz = read(clock_, memory),
          .watts = 1e-3 * milliwatts,
          .celsius = read(temperature_, of_gpu)};
}

}  // namespace nibblenet
