#include "kernels/cpu/processor.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

constexpr std::array<std::string_view, 5> names = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};

InstructionSet supported() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return InstructionSet::portable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("bmi2"))
    return InstructionSet::avx2;
  if (!__builtin_cpu_supports("avx512vnni")) return InstructionSet::avx512;
  return __builtin_cpu_supports("avx512bf16") ? InstructionSet::avx512_bf16 : InstructionSet::avx512_vnni;
#else
  return InstructionSet::portable;
#endif
}

}  // namespace

std::string_view to_string(InstructionSet set) { return names.at(static_cast<size_t>(set)); }

std::string_view title_of(InstructionSet set) {
  constexpr std::array<std::string_view, 5> titles = {"portable", "AVX2", "AVX-512", "AVX-512 with VNNI",
                                                      "AVX-512 with VNNI and BF16"};
  return titles.at(static_cast<size_t>(set));
}

InstructionSet parse_instruction_set(std::string_view name) {
  const auto* found = std::ranges::find(names, name);
  if (found == names.end())
    fail<UsageError>("NIBBLENET_MAX_ISA={}: use portable, avx2, avx512, avx512_vnni or avx512_bf16", name);
  return static_cast<InstructionSet>(found - names.begin());
}

InstructionSet best_instruction_set() {
  static const InstructionSet best = [] {
    const char* limit = std::getenv("NIBBLENET_MAX_ISA");
    return limit == nullptr || *limit == '\0' ? supported() : std::min(supported(), parse_instruction_set(limit));
  }();
  return best;
}

bool has_vbmi() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

}  // namespace nibblenet
