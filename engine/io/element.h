#pragma once

#include <cstdint>
#include <span>

#include "engine/io/safetensors.h"

namespace nibblenet {

/// Elements that lie one behind the other, on any address, as float32: exact for F32, F16 and BF16,
/// rounded to nearest for F64. False, with nothing written, for other types. `bytes` holds as many
/// elements as `out`.
bool floats_from(DType dtype, std::span<const uint8_t> bytes, std::span<float> out);

}  // namespace nibblenet
