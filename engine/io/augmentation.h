#pragma once

#include <cstdint>

namespace nibblenet {

/// A change of an image before its preparation: it moves by `right` and `down` pixels, with black
/// where nothing came from, and is then mirrored.
struct Augmentation {
  int32_t right = 0;
  int32_t down = 0;
  int32_t mirrored = 0;  ///< 0 or 1
};

}  // namespace nibblenet
