#include "engine/quant/code_layout.h"

#include <algorithm>

#include "engine/quant/bits.h"
#include "engine/quant/entropy_model.h"

namespace nibblenet {

int64_t CodeLayout::stride() const { return channel_stride(elements, bits); }

CodeLayout code_layout(const PackedTensor& packed) {
  if (packed.scheme.is_trellis()) {
    // A file may name any shape. Up to this one no product overflows; no file holds larger ones.
    constexpr int64_t most_weights = int64_t{1} << 50;
    return {1, packed.shape.elements() > most_weights ? most_weights : trellis_layout(packed).bytes(), 8};
  }
  return {packed.shape[0], packed.shape.inner_elements(), packed.scheme.bits};
}

CodeLayout block_id_layout(const PackedTensor& packed) {
  return {packed.shape[0], packed.shape.inner_elements(), packed.block_id_bits()};
}

std::vector<uint8_t> transposed(std::span<const uint8_t> codes, const CodeLayout& layout) {
  constexpr int64_t inputs_at_once = 64;  // a multiple of 8, so that each run of a channel starts on a byte
  const CodeLayout turned = layout.transposed();
  std::vector<uint8_t> result(static_cast<size_t>(turned.bytes()));
#pragma omp parallel for
  for (int64_t first = 0; first < layout.elements; first += inputs_at_once) {
    const int64_t inputs = std::min(inputs_at_once, layout.elements - first);
    std::vector<uint8_t> stretch(static_cast<size_t>(inputs)), block(static_cast<size_t>(inputs * layout.channels));
    for (int64_t channel = 0; channel < layout.channels; ++channel) {
      read_symbols(codes.data() + channel * layout.stride(), {layout, layout.bits}, first, stretch);
      for (int64_t i = 0; i < inputs; ++i) block[i * layout.channels + channel] = stretch[i];
    }
    for (int64_t i = 0; i < inputs; ++i) {
      FieldWriter writer(result.data() + (first + i) * turned.stride());
      for (int64_t channel = 0; channel < layout.channels; ++channel)
        writer.put(block[i * layout.channels + channel], layout.bits);
      writer.finish();
    }
  }
  return result;
}

}  // namespace nibblenet
