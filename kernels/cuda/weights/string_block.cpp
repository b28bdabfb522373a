#include "kernels/cuda/weights/string_block.h"

namespace nibblenet {
namespace {

/// Calls f(byte of a string, the same one's byte in the blocks) for all bytes but those behind the
/// last string.
template <class F>
void for_each_byte(const Shape& shape, int quarters, F f) {
  const TrellisLayout layout{shape[0], shape.inner_elements(), quarters};
  const StringBlocks blocks(layout);
  const int64_t channels = shape[1], taps = layout.inputs / channels;
  for (int64_t s = 0; s < layout.sequences(); ++s) {
    const auto bytes = static_cast<int>(layout.string_bytes(s));
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks.blocks(); ++block) {
      const int64_t of_block = blocks.offset(s, block);
      for (int column = 0; column < StringBlocks::columns; ++column) {
        const int64_t k = block * StringBlocks::columns + column;
        const int64_t string = layout.offset(s, k % channels * taps + k / channels);
        for (int i = 0; i < bytes; ++i)
          f(string + i, of_block + StringBlocks::byte_of_string(column, i, blocks.lanes(s), quarters));
      }
    }
  }
}

}  // namespace

std::vector<uint8_t> to_string_blocks(const std::vector<uint8_t>& strings, const Shape& shape, int quarters) {
  std::vector<uint8_t> blocks = strings;
  for_each_byte(shape, quarters, [&](int64_t of_string, int64_t of_block) {
    blocks[static_cast<size_t>(of_block)] = strings[static_cast<size_t>(of_string)];
  });
  return blocks;
}

std::vector<uint8_t> from_string_blocks(const std::vector<uint8_t>& blocks, const Shape& shape, int quarters) {
  std::vector<uint8_t> strings = blocks;
  for_each_byte(shape, quarters, [&](int64_t of_string, int64_t of_block) {
    strings[static_cast<size_t>(of_string)] = blocks[static_cast<size_t>(of_block)];
  });
  return strings;
}

}  // namespace nibblenet
