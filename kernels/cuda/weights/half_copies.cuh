#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/weights/superblock.h"
#include "kernels/cuda/weights/weight_cuda.h"

// Fp16 copies of weights that train. The tensor cores multiply these copies.

namespace nibblenet {

/// Index in PyTorch's order of weight k (device order) of a filter.
__device__ __forceinline__ int64_t torch_index(int filter, int k, int channels, int taps) {
  const int tap = k / channels;
  return (static_cast<int64_t>(filter) * channels + (k - tap * channels)) * taps + tap;
}

/// The fp16 copies of one weight, in device order: rows for the gradients, and superblocks for the
/// forward product where it has them. Weights are multiplied by `factor`, then rounded.
struct HalfCopies {
  f16* rows = nullptr;  ///< [K, R S C]; null: no copies
  unsigned char* superblocks = nullptr;
  Superblocks layout;
  int length = 0;  ///< R S C
  float factor = 1.0F;

  __device__ void store(int filter, int column, float w) const {
    if (rows == nullptr) return;
    store_element(rows, static_cast<int64_t>(filter) * length + column, w * factor);
    if (superblocks != nullptr) store_element(superblock_pair(filter, column), column % 2, w * factor);
  }
  /// Stores an even column and the next one. Rows have even length.
  __device__ void store_pair(int filter, int column, const float2& w) const {
    if (rows == nullptr) return;
    const uint32_t word = pair_of_fp16(w.x * factor, w.y * factor);
    *reinterpret_cast<uint32_t*>(rows + static_cast<int64_t>(filter) * length + column) = word;
    if (superblocks != nullptr) *reinterpret_cast<uint32_t*>(superblock_pair(filter, column)) = word;
  }

 private:
  /// Address of the fp16 values of an even column and the next one.
  __device__ f16* superblock_pair(int filter, int column) const {
    const Superblocks::Place place = Superblocks::place(filter, column);
    return reinterpret_cast<f16*>(superblocks + layout.offset(filter, column) +
                                  layout.byte_of_word(place, place.value));
  }
};
inline HalfCopies half_copies_of(WeightCuda& w) {
  return {w.rows_in_fp16(), w.superblocks_in_fp16(), w.superblock_layout(),
          static_cast<int>(w.shape().inner_elements()), w.normalisation()};
}

}  // namespace nibblenet
