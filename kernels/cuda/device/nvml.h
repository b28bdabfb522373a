#pragma once

#include <optional>

#include "kernels/backend.h"

namespace nibblenet {

/// The current GPU as NVML, the driver's library, sees it.
class Nvml {
 public:
  /// Throws CudaError where the library or the GPU is missing.
  Nvml();

  /// Joules since the driver was loaded, of everything that ran on the GPU. The driver updates the
  /// counter about ten times a second. Returns nothing for GPUs without one: those before Volta.
  std::optional<double> joules() const;
  /// Driver, clocks, power and temperature now. What the driver does not tell is 0.
  DeviceState state() const;

 private:
  using Device = void*;  ///< nvmlDevice_t
  using Reading = int (*)(Device, unsigned* value);
  using ReadingOf = int (*)(Device, int kind, unsigned* value);

  int (*total_energy_)(Device, unsigned long long* millijoules) = nullptr;
  int (*driver_version_)(char* text, unsigned length) = nullptr;
  ReadingOf clock_ = nullptr;        ///< in MHz, by nvmlClockType_t
  ReadingOf temperature_ = nullptr;  ///< in degrees Celsius, by nvmlTemperatureSensors_t
  Reading power_ = nullptr;          ///< in milliwatts
  Device device_ = nullptr;
};

}  // namespace nibblenet
