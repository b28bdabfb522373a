#pragma once

#include "kernels/cuda/conv/few_channels_fit.h"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"

// Layout of few_channels.cuh: the work of its blocks, and its operands in shared memory.

namespace nibblenet {

/// Position of each pair along k: pair `word` of kernel row r lies at slot[r * words + word].
struct PairSlots {
  uint8_t slot[few_channels_most_pairs];
};

/// The band that a block computes next.
__device__ __forceinline__ OutputBands::Place next_place(const OutputBands& b, OutputBands::Place place) {
  if (place.band + 1 < b.walk) return {place.walk, place.band + 1};
  return {place.walk + static_cast<int>(gridDim.x), 0};
}

struct FewChannels {
  OutputBands bands;
  const f16* x;
  BiasEpilogue<f16*> epilogue;
  float factor;  ///< of weights
  PairSlots order;
  bool whole_vectors;  ///< 8 filters of y are 16 aligned bytes
};

/// Dynamic shared memory of a block, OutputBands::shared_bytes() long.
struct FewChannelsShared {
  struct Pairs {
    int low, high;  ///< bytes from a window's beginning
  };
  struct Finish {
    float step, bias;
  };
  unsigned char* memory;
  const OutputBands& bands;

  static_assert(sizeof(Pairs) == 8 && sizeof(Finish) == 8, "as OutputBands counts them");

  __device__ unsigned char* filters() const { return memory; }
  __device__ unsigned char* input() const { return memory + bands.input_at(); }
  /// [k_tiles][4]: the pairs that the lanes with lane % 4 = t read in a k-tile.
  __device__ Pairs* pairs() const { return reinterpret_cast<Pairs*>(memory + bands.pairs_at()); }
  __device__ Finish* finish() const { return reinterpret_cast<Finish*>(memory + bands.finish_at()); }
  /// [weight, in device order]: its offset in row 0 of the filters.
  __device__ uint16_t* places() const { return reinterpret_cast<uint16_t*>(memory + bands.places_at()); }
  /// [filter]: its packed codes.
  __device__ unsigned char* codes() const { return memory + bands.codes_at(); }
  /// [row of a band][pooled column][filter]: maxima along rows. Behind them lie the last two rows
  /// of the band before, for the next band's first output row.
  __device__ unsigned char* results() const { return memory + bands.places_at(); }
};

/// A lane's sums: sums[tile][u][2 h + e] is filter 2 U g + 2 u + h of pixel 2 t + e of a tile.
template <int tiles, int fragments>
struct FewChannelsTileSums {
  float d[tiles][fragments][4];
};

}  // namespace nibblenet
