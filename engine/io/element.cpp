#include "engine/io/element.h"

#include <cstring>

#include "engine/core/half.h"

namespace nibblenet {
namespace {

template <class T, class Convert>
void convert(std::span<const uint8_t> bytes, std::span<float> out, Convert&& to_float) {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));  // tensors of foreign files may start anywhere
    out[i] = to_float(value);
  }
}

}  // namespace

bool floats_from(DType dtype, std::span<const uint8_t> bytes, std::span<float> out) {
  switch (dtype) {
    case DType::f32:
      if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size_bytes());
      return true;
    case DType::f16:
      convert<uint16_t>(bytes, out, f16_to_f32);
      return true;
    case DType::bf16:
      convert<uint16_t>(bytes, out, bf16_to_f32);
      return true;
    case DType::f64:
      convert<double>(bytes, out, [](double value) { return static_cast<float>(value); });
      return true;
    default:
      return false;
  }
}

}  // namespace nibblenet
