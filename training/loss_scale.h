#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/core/error.h"

namespace nibblenet {

/// What the loss is multiplied by while training in float16, so that small gradients stay above
/// what fp16 values round to 0: as large as gradients bear (Micikevicius 2018, arXiv 1710.03740,
/// section 3.2; NVIDIA, "Mixed precision training", automatic loss scaling). A power of two, so
/// that dividing by it is exact.
struct LossScale {
  static constexpr double largest = 16777216;  // 2^24
  static constexpr int64_t patience = 2000;    // steps

  double value = 65536;
  int64_t finite_steps = 0;  ///< since the value changed
  int64_t skipped = 0;       ///< steps so far

  /// After a step: `finite` is whether it was taken, or skipped for a gradient that was not finite.
  /// Throws Error where gradients overflow by themselves.
  void update(bool finite) {
    if (!finite) {
      if (value <= 1) throw Error("gradients leave float16's range: lower --lr, or train with --precision float32");
      value /= 2;
      finite_steps = 0;
      ++skipped;
    } else if (++finite_steps == patience) {
      value = std::min(value * 2, largest);
      finite_steps = 0;
    }
  }
};

}  // namespace nibblenet
