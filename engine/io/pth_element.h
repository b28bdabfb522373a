#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "engine/io/safetensors.h"

namespace nibblenet {

/// An element type of PyTorch.
struct PthElement {
  std::string_view name;     ///< "float32", as in torch.float32
  std::string_view storage;  ///< "FloatStorage", as in torch.FloatStorage; empty where only untyped storages hold it
  uint8_t bytes;             ///< of one element
  uint8_t word_bytes;        ///< of the numbers whose byte order is swapped: half an element when complex
  std::optional<DType> dtype = std::nullopt;  ///< the type in safetensors, if it has it

  bool untyped() const { return name.empty(); }
};

/// The element type of torch.<name>, of the symbol "torch\nFloatStorage" or
/// "torch.storage\nUntypedStorage"; nullptr when there is none.
const PthElement* find_pth_dtype(std::string_view symbol);
const PthElement* find_pth_storage(std::string_view symbol);

/// PyTorch's name of an element type: "float16".
std::string_view torch_name(DType dtype);

/// Converts contiguous elements to float32: rounded to nearest from float64, exactly from every
/// other type. Returns false for integers that float32 cannot hold, and for types that are no real
/// numbers (complex, quantized, packed, untyped).
bool floats_from(const PthElement& element, std::span<const uint8_t> bytes, std::span<float> out);

/// Reverses the bytes of every word in place.
void swap_byte_order(const PthElement& element, std::span<uint8_t> bytes);

}  // namespace nibblenet
