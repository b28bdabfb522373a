#pragma once

#include <optional>

namespace nibblenet {

/// What the current GPU has used, by NVML, the driver's own library.
class EnergyMeter {
 public:
  /// Throws CudaError where the library or the GPU is not there.
  EnergyMeter();

  /// Since the driver was loaded, of everything that ran there; the driver renews it some ten times
  /// a second. Nothing where the GPU does not count: those before Volta.
  std::optional<double> joules() const;

 private:
  using Device = void*;  ///< nvmlDevice_t

  int (*total_energy_)(Device, unsigned long long* millijoules) = nullptr;
  Device device_ = nullptr;
};

}  // namespace nibblenet
