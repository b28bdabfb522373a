#pragma once

#include <cstdint>

#include "kernels/weight.h"

namespace nibblenet {

/// Where the parts of a packed weight lie in a GPU's memory; null for parts that it lacks. Codes
/// and block ids are in the order of kernels (kernels/cuda/weights/device_order.h), the other parts
/// as in files. Codes lie on 16 bytes, scales and codebook on those of their type.
struct DeviceParts {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* zero_points = nullptr;
  const uint8_t* block_ids = nullptr;
  const float* codebook = nullptr;
};

/// A packed weight of a GPU whose parts are somebody else's, such as tensors of PyTorch. It holds
/// what kernels take from the host: traits, tables and factors.
class BorrowedWeight {
 public:
  virtual ~BorrowedWeight() = default;
  /// The weight with its parts there, until the next call.
  virtual Weight& at(const DeviceParts& parts) = 0;
};

}  // namespace nibblenet
