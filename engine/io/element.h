#pragma once

#include <cstdint>
#include <span>

#include "engine/io/safetensors.h"

namespace nibblenet {

/// Converts contiguous elements at any address to float32: exactly from F32, F16 and BF16, rounded
/// to nearest from F64. Returns false, and writes nothing, for other types. `bytes` holds as many
/// elements as `out`.
bool floats_from(DType dtype, std::span<const uint8_t> bytes, std::span<float> out);

}  // namespace nibblenet
