#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/backend_cuda.h"

namespace nibblenet::testing {

/// The kernels that can compute a product of fp16 values here: plain ones, those of all GPUs, and
/// Hopper's.
enum class Family : uint8_t { plain, portable, wgmma };

inline std::string name_of(Family family) {
  switch (family) {
    case Family::plain:
      return "plain";
    case Family::portable:
      return "portable";
    case Family::wgmma:
      return "wgmma";
  }
  return "?";
}

inline std::vector<Family> families() {
  std::vector<Family> all = {Family::plain, Family::portable};
  if (Device().has_wgmma()) all.push_back(Family::wgmma);
  return all;
}

inline void use(CudaBackend& backend, Family family) {
  using Mode = KernelChoice::Mode;
  backend.choose_kernels({family == Family::plain      ? Mode::plain
                          : family == Family::portable ? Mode::portable
                                                       : Mode::wgmma});
}

inline constexpr KernelChoice plain_kernels = {KernelChoice::Mode::plain};
/// Without wgmma and without few_pixels: mma and few_rows are the kernels for tensor cores that are
/// left.
inline constexpr KernelChoice mma_kernels = KernelChoice{KernelChoice::Mode::portable}.without(Product::few_pixels);

}  // namespace nibblenet::testing
