#pragma once

#include "engine/quant/bits.h"
#include "engine/quant/packed_tensor.h"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/weights/string_block.h"
#include "kernels/cuda/weights/superblock.h"

// Readers of weights in any storage. A product sees a filter as a row of `length` weights and loads
// eight neighbours at a time. The three readers below do that for floats, fp16 values and packed
// codes; a kernel is compiled for each reader.
//
// Device order: inside a row, tap by tap, and inside a tap channel by channel. The eight
// activations that they are multiplied by are then neighbours in a channels-last image. Packed
// codes and fp16 values lie in device order. Float32 weights, which training changes and files
// hold, keep PyTorch's order: channel by channel, inside it tap by tap. Linear layers have one tap,
// so the two orders are equal.

namespace nibblenet {

/// Sizes of a filter bank [K, C, taps] as a matrix [rows, length].
struct FilterSizes {
  int rows = 0;      ///< K
  int channels = 0;  ///< C
  int taps = 1;      ///< R S
  int length = 0;    ///< C R S
};

/// Values of the 2^n codes, passed to a kernel by value: they use no device memory.
struct CodeValues {
  float values[256];
};

/// Scale of each group: decoded values are multiplied by it.
struct GroupSteps {
  const void* scales = nullptr;
  ScaleType type = ScaleType::f32;
  float scale_to = 1.0F;

  __device__ float scale(int64_t group) const {
    return type == ScaleType::f32 ? static_cast<const float*>(scales)[group]
                                  : load_element(static_cast<const f16*>(scales), group);
  }
  __device__ float operator()(int64_t group) const { return scale(group) / scale_to; }
};

struct Float32Weights {
  FilterSizes sizes;
  const float* values;  ///< [K, C, taps]

  __device__ void prepare(CodeValues&) const {}

  /// Loads weights [k, k + 8) of a row in device order, with zeros outside. `k` is a multiple of 8.
  __device__ void load8(int row, int k, const CodeValues&, float (&w)[8]) const {
    const float* filter = values + static_cast<int64_t>(row) * sizes.length;
    int tap = k / sizes.channels;
    int channel = k - tap * sizes.channels;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      w[i] = row < sizes.rows && k + i < sizes.length ? filter[channel * sizes.taps + tap] : 0.0F;
      if (++channel == sizes.channels) {
        channel = 0;
        ++tap;
      }
    }
  }
};

struct Float16Weights {
  FilterSizes sizes;
  const f16* values;         ///< [K, taps, C]
  bool superblocks = false;  ///< in superblocks instead

  __device__ void prepare(CodeValues&) const {}

  __device__ void load8(int row, int k, const CodeValues&, float (&w)[8]) const {
    const f16* filter = values + static_cast<int64_t>(row) * sizes.length;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = row < sizes.rows && k + i < sizes.length;
      w[i] = !inside ? 0.0F : superblocks ? load_from_superblock(row, k + i) : load_element(filter, k + i);
    }
  }

  __device__ float load_from_superblock(int row, int k) const {
    const Superblocks layout(sizes.rows, sizes.length, 16);
    const Superblocks::Place place = Superblocks::place(row, k - k % 2);
    const int64_t byte = layout.offset(row, k) + layout.byte_of_word(place, place.value) + k % 2 * 2;
    return load_element(values, byte / 2);
  }
};

/// Where the strings of a trellis weight lie.
struct StringPlace {
  const uint8_t* codes;
  TrellisLayout layout;
  bool in_blocks;            ///< else as in files
  int input_channels, taps;  ///< of the inputs
};

/// Trellis values of weights [k, k + 8) of a row, plus 126, a byte each, the first one lowest; 126
/// behind the row's end. A row's window lies in the same three bytes of all strings. Not inlined:
/// that would take registers which the float32 kernel does not have.
inline __device__ __noinline__ uint64_t load_strings(const StringPlace& at, int row, int k) {
  const auto s = static_cast<int>(row / trellis_sequence), i = static_cast<int>(row % trellis_sequence);
  const int quarters = at.layout.quarters;
  const auto bytes = static_cast<int>(at.layout.string_bytes(s)), bit = static_cast<int>(trellis_bit(i, quarters));
  const bool again = trellis_again(i, quarters);
  const StringBlocks blocks(at.layout);
  const int lanes = blocks.lanes(s);
  uint64_t result = 0;
#pragma unroll 1
  for (int j = 7; j >= 0; --j) {
    result = result << 8 | static_cast<uint64_t>(trellis_largest_value);
    if (k + j >= at.layout.inputs) continue;
    const int tap = (k + j) / at.input_channels, channel = k + j - tap * at.input_channels;
    const uint8_t* string = at.codes + (at.in_blocks ? blocks.offset(s, (k + j) / StringBlocks::columns)
                                                     : at.layout.offset(s, int64_t{channel} * at.taps + tap));
    uint32_t word = 0;
#pragma unroll 1
    for (int byte = 2; byte >= 0; --byte) {
      int in_string = bit / 8 + byte;
      if (in_string >= bytes) in_string -= bytes;
      const int place = at.in_blocks
                            ? StringBlocks::byte_of_string((k + j) % StringBlocks::columns, in_string, lanes, quarters)
                            : in_string;
      word = word << 8 | string[place];
    }
    result += static_cast<uint64_t>(static_cast<int64_t>(trellis_value(word >> bit % 8 & (trellis_states - 1), again)));
  }
  return result;
}

/// Packed codes of any scheme. Linear, FP8 and codebook schemes differ only in their values; with
/// block ids, the group of a weight is read from memory.
struct PackedWeights {
  FilterSizes sizes;
  PackedView packed;           ///< codes and block ids in device order; `values` null unless the tensor brought its own
  CodeValues fixed;            ///< the method's values, used where packed.values is null
  bool superblocks = false;    ///< layout of the codes; block ids lie row by row
  bool string_blocks = false;  ///< of trellis strings, which else lie as in files
  /// Whole rows share a step, which the epilogue applies: load8() returns the code's value alone.
  bool step_in_epilogue = false;

  /// Copies the codebook to shared memory; the caller's next barrier makes it visible.
  __device__ void prepare(CodeValues& table) const {
    const float* source = packed.values != nullptr ? packed.values : fixed.values;
    for (int i = static_cast<int>(threadIdx.x); i < 1 << packed.bits; i += static_cast<int>(blockDim.x))
      table.values[i] = source[i];
  }

  /// Loads codes [k, k + 8) of a row, the first one lowest. `k` is a multiple of 8.
  __device__ uint64_t load_codes(int row, int k) const {
    return superblocks ? load_from_superblock(row, k) : load_from_row(row, k);
  }

  /// Eight neighbours belong to one lane: two pairs in each of two chunks. Not inlined: that would
  /// take registers which the float32 kernel does not have.
  __device__ __noinline__ uint64_t load_from_superblock(int row, int k) const {
    const int bits = packed.bits;
    const Superblocks layout(sizes.rows, sizes.length, bits);
    const uint8_t* block = packed.codes + layout.offset(row, k);
    const uint32_t mask = in_both_halves((1U << bits) - 1U);
    uint64_t codes = 0;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const Superblocks::Place place = Superblocks::place(row, k + 2 * pair);
      const FieldPlace field = field_place(place.value, bits);
      const auto word = [&](int i) {
        return *reinterpret_cast<const uint32_t*>(block + layout.byte_of_word(place, i));
      };
      uint32_t both = word(field.word) >> field.shift & mask;
      if (field.rest > 0) {
        const uint32_t lower = in_both_halves((1U << field.rest) - 1U);
        both = (word(field.word) >> (16 - bits) & (mask ^ lower)) | (word(field.word + 1) & lower);
      }
      const uint32_t two = (both & 0xFFFFU) | both >> 16 << bits;
      codes |= static_cast<uint64_t>(two) << (2 * pair * bits);
    }
    return codes;
  }

  __device__ uint64_t load_from_row(int row, int k) const {
    return load_from_channel(packed.codes + row * packed.code_stride, k);
  }

  /// Loads codes [k, k + 8) of a channel, of which `codes` may be a copy: `bits` whole bytes, in at
  /// most three aligned words.
  __device__ uint64_t load_from_channel(const uint8_t* codes, int k) const {
    const int byte = k / 8 * packed.bits;
    const int words = static_cast<int>(packed.code_stride / 4);
    const auto* channel = reinterpret_cast<const uint32_t*>(codes);
    const int first = byte / 4;
    const int shift = byte % 4 * 8;
    const uint64_t low = channel[first];
    const uint64_t middle = first + 1 < words ? channel[first + 1] : 0;
    const uint64_t high = first + 2 < words ? channel[first + 2] : 0;
    const uint64_t both = low | middle << 32;
    return shift == 0 ? both : both >> shift | high << (64 - shift);
  }

  __device__ float step(int64_t group) const {
    if (step_in_epilogue) return 1.0F;
    return GroupSteps{packed.scales, packed.scale_type, packed.scale_to}(group);
  }

  __device__ float zero_point(int64_t group) const {
    return packed.zero_points == nullptr ? 0.0F : static_cast<float>(packed.zero_points[group]);
  }

  /// Group of weight k of a row, which lies at `channel` and `tap`. Ids beyond the last one, which
  /// only somebody else's memory can hold, are the last one's.
  __device__ int64_t group(int row, int k, int channel, int tap) const {
    if (packed.block_ids != nullptr) {
      const int64_t id = read_field(packed.block_ids + row * packed.block_id_stride, k, packed.block_id_bits);
      return id < packed.groups.groups ? id : packed.groups.groups - 1;
    }
    return packed.groups.group(row, static_cast<int64_t>(channel) * sizes.taps + tap);
  }

  /// Whether weights [k, k + 8) of a row are known to share one group.
  __device__ bool shares_group(int k) const {
    if (packed.block_ids != nullptr) return false;
    const Granularity::Kind kind = packed.groups.kind;
    if (kind == Granularity::Kind::tensor || kind == Granularity::Kind::channel) return true;
    return sizes.taps == 1 && packed.groups.run(k) >= 8;
  }

  __device__ void load8_of_strings(int row, int k, float (&w)[8]) const {
    const uint64_t values = load_strings({packed.codes,
                                          {packed.channels, packed.channel_elements, packed.trellis_quarters},
                                          string_blocks,
                                          sizes.channels,
                                          sizes.taps},
                                         row, k);
    const float factor = step(row);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      w[j] = reconstruct(static_cast<float>(static_cast<int>(values >> 8 * j & 255U) - trellis_largest_value), 0.0F,
                         factor);
  }

  __device__ void load8(int row, int k, const CodeValues& table, float (&w)[8]) const {
    if (row >= sizes.rows || k >= sizes.length) {
#pragma unroll
      for (float& value : w) value = 0.0F;
      return;
    }
    if (packed.trellis_quarters > 0) return load8_of_strings(row, k, w);
    const uint64_t codes = load_codes(row, k);
    const uint32_t mask = (1U << packed.bits) - 1U;
    int tap = k / sizes.channels;
    int channel = k - tap * sizes.channels;
    const bool shared_group = shares_group(k);
    int64_t current = group(row, k, channel, tap);
    float current_step = step(current);
    float current_zero = zero_point(current);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (k + i >= sizes.length) {
        w[i] = 0.0F;
        continue;
      }
      if (!shared_group) {
        const int64_t next = group(row, k + i, channel, tap);
        if (next != current) {
          current = next;
          current_step = step(current);
          current_zero = zero_point(current);
        }
      }
      const auto code = static_cast<uint32_t>(codes >> (i * packed.bits)) & mask;
      w[i] = reconstruct(table.values[code], current_zero, current_step);
      if (++channel == sizes.channels) {
        channel = 0;
        ++tap;
      }
    }
  }
};

}  // namespace nibblenet
