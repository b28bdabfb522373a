#include "kernels/cuda/weights/string_block.h"

namespace nibblenet {

std::vector<uint8_t> to_string_blocks(const std::vector<uint8_t>& strings, const Shape& shape, int quarters) {
  const TrellisLayout layout{shape[0], shape.inner_elements(), quarters};
  const StringBlocks blocks(layout);
  const int64_t channels = shape[1], taps = layout.inputs / channels;
  std::vector<uint8_t> result = strings;
  for (int64_t s = 0; s < layout.sequences(); ++s) {
    const auto bytes = static_cast<int>(layout.string_bytes(s));
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks.blocks(); ++block) {
      uint8_t* to = result.data() + blocks.offset(s, block);
      for (int column = 0; column < StringBlocks::columns; ++column) {
        const int64_t k = block * StringBlocks::columns + column;
        const uint8_t* from = strings.data() + layout.offset(s, k % channels * taps + k / channels);
        for (int i = 0; i < bytes; ++i)
          to[StringBlocks::byte_of_string(column, i, blocks.lanes(s), quarters)] = from[i];
      }
    }
  }
  return result;
}

}  // namespace nibblenet
