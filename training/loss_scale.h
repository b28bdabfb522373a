#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/core/error.h"

namespace nibblenet {

/// Loss scale of training in float16 (Micikevicius 2018, arXiv 1710.03740, section 3.2; NVIDIA,
/// "Mixed precision training", automatic loss scaling). The loss is multiplied by it, so that small
/// gradients do not round to 0 in fp16. It is as large as the gradients allow. It is a power of
/// two, so that dividing by it is exact.
struct LossScale {
  static constexpr double largest = 16777216;  // 2^24
  static constexpr int64_t patience = 2000;    // steps

  double value = 65536;
  int64_t finite_steps = 0;  ///< since the value changed
  int64_t skipped = 0;       ///< steps so far

  /// Adapts the scale after a step. `finite`: the step was taken; otherwise it was skipped because
  /// a gradient was not finite. Throws Error if gradients overflow at a scale of 1.
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
