#include "engine/io/pth_element.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/core/half.h"
#include "engine/io/element.h"

namespace nibblenet {
namespace {

constexpr std::array<PthElement, 27> element_table = {{
    {"float32", "FloatStorage", 4, 4, DType::f32},
    {"float64", "DoubleStorage", 8, 8, DType::f64},
    {"float16", "HalfStorage", 2, 2, DType::f16},
    {"bfloat16", "BFloat16Storage", 2, 2, DType::bf16},
    {"int64", "LongStorage", 8, 8, DType::i64},
    {"int32", "IntStorage", 4, 4, DType::i32},
    {"int16", "ShortStorage", 2, 2, DType::i16},
    {"int8", "CharStorage", 1, 1, DType::i8},
    {"uint8", "ByteStorage", 1, 1, DType::u8},
    {"bool", "BoolStorage", 1, 1, DType::boolean},
    {"complex64", "ComplexFloatStorage", 8, 4},
    {"complex128", "ComplexDoubleStorage", 16, 8},
    {"qint8", "QInt8Storage", 1, 1},
    {"quint8", "QUInt8Storage", 1, 1},
    {"qint32", "QInt32Storage", 4, 4},
    {"quint4x2", "QUInt4x2Storage", 1, 1},
    {"quint2x4", "QUInt2x4Storage", 1, 1},
    {"", "UntypedStorage", 1, 1},
    {"uint16", "", 2, 2, DType::u16},
    {"uint32", "", 4, 4, DType::u32},
    {"uint64", "", 8, 8, DType::u64},
    {"float8_e4m3fn", "", 1, 1},
    {"float8_e5m2", "", 1, 1},
    {"float8_e4m3fnuz", "", 1, 1},
    {"float8_e5m2fnuz", "", 1, 1},
    {"float8_e8m0fnu", "", 1, 1},
    {"complex32", "", 4, 2},
}};

template <class T>
bool integers_from(std::span<const uint8_t> bytes, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<float>(value);
    // long double holds every 64-bit integer, so that the comparison is exact.
    if (static_cast<long double>(out[i]) != static_cast<long double>(value)) return false;
  }
  return true;
}

/// OCP FP8 E4M3: 4 bits of exponent with bias 7, no infinity, one NaN a sign.
float f8_e4m3fn_to_f32(uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int fraction = bits & 7;
  const float sign = (bits & 0x80) != 0 ? -1.0F : 1.0F;
  if ((bits & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                               : std::ldexp(static_cast<float>(8 + fraction), exponent - 10));
}

/// FP8 E5M2 is the upper byte of a binary16.
float f8_e5m2_to_f32(uint8_t bits) { return f16_to_f32(static_cast<uint16_t>(bits << 8)); }

}  // namespace

const PthElement* find_pth_dtype(std::string_view symbol) {
  constexpr std::string_view prefix = "torch\n";
  if (!symbol.starts_with(prefix) || symbol.size() == prefix.size()) return nullptr;
  const auto* found = std::ranges::find(element_table, symbol.substr(prefix.size()), &PthElement::name);
  return found == element_table.end() ? nullptr : found;
}

const PthElement* find_pth_storage(std::string_view symbol) {
  for (const std::string_view prefix : {"torch\n", "torch.storage\n"}) {
    if (!symbol.starts_with(prefix) || symbol.size() == prefix.size()) continue;
    const auto* found = std::ranges::find(element_table, symbol.substr(prefix.size()), &PthElement::storage);
    if (found != element_table.end()) return found;
  }
  return nullptr;
}

std::string_view torch_name(DType dtype) {
  return std::ranges::find(element_table, std::optional(dtype), &PthElement::dtype)->name;
}

bool floats_from(const PthElement& element, std::span<const uint8_t> bytes, std::span<float> out) {
  if (!element.dtype) {
    if (element.name != "float8_e4m3fn" && element.name != "float8_e5m2") return false;
    std::ranges::transform(bytes, out.begin(), element.name == "float8_e5m2" ? f8_e5m2_to_f32 : f8_e4m3fn_to_f32);
    return true;
  }
  switch (*element.dtype) {
    case DType::boolean:
      std::ranges::transform(bytes, out.begin(), [](uint8_t byte) { return byte != 0 ? 1.0F : 0.0F; });
      return true;
    case DType::u8:
      return integers_from<uint8_t>(bytes, out);
    case DType::i8:
      return integers_from<int8_t>(bytes, out);
    case DType::u16:
      return integers_from<uint16_t>(bytes, out);
    case DType::i16:
      return integers_from<int16_t>(bytes, out);
    case DType::i32:
      return integers_from<int32_t>(bytes, out);
    case DType::u32:
      return integers_from<uint32_t>(bytes, out);
    case DType::i64:
      return integers_from<int64_t>(bytes, out);
    case DType::u64:
      return integers_from<uint64_t>(bytes, out);
    default:
      return floats_from(*element.dtype, bytes, out);
  }
}

void swap_byte_order(const PthElement& element, std::span<uint8_t> bytes) {
  if (element.word_bytes == 1) return;
  for (size_t i = 0; i < bytes.size(); i += element.word_bytes)
    std::ranges::reverse(bytes.subspan(i, element.word_bytes));
}

}  // namespace nibblenet
