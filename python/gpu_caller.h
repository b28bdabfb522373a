#pragma once

#include <cstdint>

namespace nibblenet::python {

/// Where a caller's arrays lie, and when they may be read and written.
struct GpuCaller {
  int gpu;           ///< as CUDA counts those of this process
  uintptr_t stream;  ///< as StreamOrder takes it
  bool operator==(const GpuCaller&) const = default;
};

}  // namespace nibblenet::python
