#pragma once

#include "kernels/cuda/weights/string_windows.cuh"

// Expands trellis strings in blocks to rows of fp16 values (device order), for convolutions by
// wgmma: each of their many blocks of pixels would decode all strings again. The values are whole
// numbers from -126 to 126: without the channels' scales.

namespace nibblenet {

inline constexpr int expanding_warps = 8;  ///< of a block, each with string blocks of its own

/// The values of channel `i` of a lane, for columns `column` and the next one.
template <int quarters>
__device__ __forceinline__ uint32_t fp16_values(const LaneStrings<quarters>& strings, int column, int i) {
  const auto parts = [&](int of_column) {
    return parts_of_value(window_at(strings.of_column[of_column], static_cast<int>(trellis_bit(i, quarters))),
                          summand_of<quarters>(i));
  };
  return fp16_values(parts(column), parts(column + 1));
}

/// A warp's string block: block `index` of its sequence.
struct WarpBlock {
  int sequence;
  int index;
  bool exists;

  /// Of sequences that have `blocks` each.
  __device__ WarpBlock(const StringBlocks& layout, int64_t blocks) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * expanding_warps + threadIdx.x / 32;
    sequence = static_cast<int>(warp / blocks);
    index = static_cast<int>(warp - sequence * blocks);
    exists = sequence < layout.sequences();
  }
};

/// rows [channels, columns] = the values of strings in blocks. A warp for each string block.
template <int quarters>
__global__ void __launch_bounds__(32 * expanding_warps)
    string_rows_kernel(f16* rows, StringBlocks layout, const uint8_t* codes, int channels) {
  pdl_trigger();
  const WarpBlock at(layout, layout.blocks());
  const int lanes = at.exists ? layout.lanes(at.sequence) : 0;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  LaneStrings<quarters> strings;
  if (lane < lanes)
    read_strings<quarters>(codes + layout.offset(at.sequence, at.index), LanePlace<quarters>(lanes), strings);
  pdl_wait();  // the kernel before may still read rows there
  if (lane >= lanes) return;
  const int64_t columns = layout.blocks() * StringBlocks::columns;
  const int first = at.sequence * static_cast<int>(trellis_sequence) + lane / 4 * StringBlocks::lane_channels;
  f16* to = rows + first * columns + at.index * StringBlocks::columns + lane % 4 * StringBlocks::lane_columns;
#pragma unroll
  for (int i = 0; i < StringBlocks::lane_channels; ++i)
    if (first + i < channels)
      *reinterpret_cast<uint2*>(to + i * columns) = {fp16_values<quarters>(strings, 0, i),
                                                     fp16_values<quarters>(strings, 2, i)};
}

}  // namespace nibblenet
