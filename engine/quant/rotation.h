#pragma once

#include <cstdint>

namespace nibblenet {

/// Which values are rotated together (hadamard.h): runs of block * stride values hold `stride`
/// blocks, and neighbours in a block lie `stride` apart.
struct Rotation {
  int64_t block = 0;  ///< 0: nothing is rotated
  int64_t stride = 1;

  explicit operator bool() const { return block > 0; }
};

}  // namespace nibblenet
