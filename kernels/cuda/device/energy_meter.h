#pragma once

#include <optional>

namespace nibblenet {

/// Energy counter of the current GPU, read through NVML, the driver's library.
class EnergyMeter {
 public:
  /// Throws CudaError where the library or the GPU is missing.
  EnergyMeter();

  /// Joules since the driver was loaded, of everything that ran on the GPU. The driver updates the
  /// counter about ten times a second. Returns nothing for GPUs without one: those before Volta.
  std::optional<double> joules() const;

 private:
  using Device = void*;  ///< nvmlDevice_t

  int (*total_energy_)(Device, unsigned long long* millijoules) = nullptr;
  Device device_ = nullptr;
};

}  // namespace nibblenet
