#pragma once

#include <cstdint>
#include <string_view>

namespace nibblenet {

/// Instruction sets that our CPU kernels know, each with all before it.
enum class InstructionSet : uint8_t {
  portable,     ///< what every processor of the build's kind has
  avx2,         ///< AVX2, FMA
  avx512,       ///< AVX-512 F, BW, DQ, VL; BMI2
  avx512_vnni,  ///< and VNNI: products of bytes
  avx512_bf16,  ///< and BF16: products of bfloat16
};
/// "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16"
std::string_view to_string(InstructionSet set);
/// "AVX-512 with VNNI", for people.
std::string_view title_of(InstructionSet set);
/// Inverse of to_string. Throws UsageError.
InstructionSet parse_instruction_set(std::string_view name);

/// The largest set that this processor has, or NIBBLENET_MAX_ISA of the environment allows, decided
/// once. Throws UsageError for a name that is none.
InstructionSet best_instruction_set();
/// Whether the processor permutes bytes across a register (AVX-512 VBMI).
bool has_vbmi();

}  // namespace nibblenet
