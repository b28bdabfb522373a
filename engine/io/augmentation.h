#pragma once

#include <cstdint>

namespace nibblenet {

/// A change of an image before its preparation: it is shifted by `right` and `down` pixels, the gap
/// is filled with black, then it is mirrored.
struct Augmentation {
  int32_t right = 0;
  int32_t down = 0;
  int32_t mirrored = 0;  ///< 0 or 1
};

}  // namespace nibblenet
