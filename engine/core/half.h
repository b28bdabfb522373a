#pragma once

#include <cstdint>

namespace nibblenet {

/// Conversions of IEEE 754 binary16 and bfloat16, given as their bits. They round to nearest even,
/// and keep NaN and Inf.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bits);

/// A binary16 in memory, for views of device memory: the host only stores and converts it.
struct f16 {
  uint16_t bits;
};

}  // namespace nibblenet
