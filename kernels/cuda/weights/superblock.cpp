#include "kernels/cuda/weights/superblock.h"

#include <algorithm>
#include <cstring>

#include "engine/quant/bits.h"

namespace nibblenet {
namespace {

uint16_t load_half_word(const uint8_t* bytes) {
  uint16_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

void add_to_half_word(uint8_t* bytes, uint32_t bits) {
  const auto value = static_cast<uint16_t>(load_half_word(bytes) | bits);
  std::memcpy(bytes, &value, sizeof(value));
}

/// Bytes of a code's first and second half word inside its superblock.
struct CodeBytes {
  FieldPlace field;
  int first;
  int second;
};
CodeBytes bytes_of(const Superblocks& blocks, int64_t row, int64_t column, int bits) {
  const auto place =
      Superblocks::place(static_cast<int>(row % Superblocks::size), static_cast<int>(column % Superblocks::size));
  const FieldPlace field = field_place(place.value, bits);
  const int odd = static_cast<int>(column % 2) * 2;
  return {field, blocks.byte_of_word(place, field.word) + odd, blocks.byte_of_word(place, field.word + 1) + odd};
}

/// Writes a code. `block` must be zero there.
void write_code(uint8_t* block, const CodeBytes& at, uint32_t code) {
  add_to_half_word(block + at.first, code >> at.field.rest << at.field.shift);
  if (at.field.rest > 0) add_to_half_word(block + at.second, code & ((1U << at.field.rest) - 1U));
}

uint32_t read_code(const uint8_t* block, const CodeBytes& at, int bits) {
  const uint32_t upper = static_cast<uint32_t>(load_half_word(block + at.first)) >> at.field.shift;
  if (at.field.rest == 0) return upper & ((1U << bits) - 1U);
  return upper << at.field.rest | (load_half_word(block + at.second) & ((1U << at.field.rest) - 1U));
}

}  // namespace

bool superblocks_fit(int64_t rows, int64_t columns, int bits) {
  return Superblocks(rows, columns, bits).bytes() <= rows * channel_stride(columns, bits);
}

std::vector<uint8_t> to_superblocks(const std::vector<uint8_t>& codes, int64_t rows, int64_t columns, int bits) {
  const Superblocks blocks(rows, columns, bits);
  std::vector<uint8_t> result(static_cast<size_t>(blocks.bytes()));
#pragma omp parallel for schedule(static)
  for (int64_t tile_row = 0; tile_row < blocks.tile_rows(); ++tile_row)  // its rows share bytes with no others
    for (int64_t row = tile_row * Superblocks::size; row < std::min(rows, (tile_row + 1) * Superblocks::size); ++row)
      for (int64_t column = 0; column < columns; ++column)
        write_code(result.data() + blocks.offset(row, column), bytes_of(blocks, row, column, bits),
                   read_field(codes.data() + row * channel_stride(columns, bits), column, bits));
  return result;
}

std::vector<uint8_t> from_superblocks(const std::vector<uint8_t>& blocks, int64_t rows, int64_t columns, int bits) {
  const Superblocks layout(rows, columns, bits);
  const int64_t stride = channel_stride(columns, bits);
  std::vector<uint8_t> codes(static_cast<size_t>(rows * stride));
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    FieldWriter writer(codes.data() + row * stride);
    for (int64_t column = 0; column < columns; ++column)
      writer.put(read_code(blocks.data() + layout.offset(row, column), bytes_of(layout, row, column, bits), bits),
                 bits);
    writer.finish();
  }
  return codes;
}

}  // namespace nibblenet
