#pragma once

#include "kernels/cuda/conv/few_channels_layout.cuh"

// Epilogue of few_channels.cuh: bias, ReLU and max pooling, stored 16 bytes per lane.

namespace nibblenet {

/// A lane's neighbouring filters of one pixel, two fp16 values per word.
template <int fragments>
struct alignas(4 * fragments) FilterWords {
  uint32_t w[fragments];
};

/// Applies the epilogue to a lane's sums of one pixel; finish[i] belongs to the lane's filter i.
template <int fragments>
__device__ __forceinline__ FilterWords<fragments> finish_pixel(const BiasEpilogue<f16*>& epilogue,
                                                               const FewChannelsShared::Finish (&finish)[2 * fragments],
                                                               const float (&sums)[fragments][4], int e) {
  FilterWords<fragments> words;
#pragma unroll
  for (int u = 0; u < fragments; ++u) {
    f16 fp16[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const FewChannelsShared::Finish& of_filter = finish[2 * u + h];
      const BiasEpilogue<f16*>::Row row{epilogue.factor, of_filter.step, of_filter.bias, epilogue.with_relu};
      store_element(&fp16[h], 0, row(sums[u][2 * h + e]));
    }
    words.w[u] = fp16[0].bits | static_cast<uint32_t>(fp16[1].bits) << 16;
  }
  return words;
}

template <int fragments>
__device__ __forceinline__ void copy_words(void* to, const FilterWords<fragments>& words) {
  if constexpr (fragments == 4) {
    *static_cast<uint4*>(to) = {words.w[0], words.w[1], words.w[2], words.w[3]};
  } else {
#pragma unroll
    for (int u = 0; u < fragments; ++u) static_cast<uint32_t*>(to)[u] = words.w[u];
  }
}

/// Stores a lane's neighbouring filters of one pixel of y.
template <int fragments>
__device__ __forceinline__ void store_filters(const FewChannels& p, int pixel, int filter,
                                              const FilterWords<fragments>& words) {
  f16* to = p.epilogue.y + static_cast<int64_t>(pixel) * p.epilogue.rows + filter;
  if (p.whole_vectors) {
    if (filter < p.epilogue.rows) copy_words<fragments>(to, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < 2 * fragments; ++i)
    if (filter + i < p.epilogue.rows) to[i].bits = static_cast<uint16_t>(words.w[i / 2] >> i % 2 * 16);
}

/// Stores a warp's results in y. The lanes of one t write all filters of a pixel.
template <int tiles, int fragments>
__device__ __forceinline__ void store_band(const FewChannels& p, const OutputBands::Band& band, int first_filter,
                                           const FewChannelsShared::Finish (&finish)[2 * fragments],
                                           const FewChannelsTileSums<tiles, fragments>& sums) {
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  const int filter = first_filter + lane / 4 * 2 * fragments;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_per_row;
    const int column = (first_tile + tile - row * b.tiles_per_row) * 8 + lane % 4 * 2;
    if (row >= b.rows || band.row + row >= b.sizes.p) continue;
    const int pixel = (band.image * b.sizes.p + band.row + row) * b.sizes.q + band.column + column;
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (column + e < b.columns && band.column + column + e < b.sizes.q)
        store_filters<fragments>(p, pixel + e, filter, finish_pixel<fragments>(p.epilogue, finish, sums.d[tile], e));
  }
}

/// Pools a warp's row of results along the row, 3 wide at stride 2, into shared memory. A lane
/// holds the first two pixels of a window; the lane of the next two pixels holds the third. All
/// lanes.
template <int tiles, int fragments>
__device__ __forceinline__ void pool_along_row(const FewChannels& p, const FewChannelsShared& shared,
                                               const FewChannelsShared::Finish (&finish)[2 * fragments],
                                               const FewChannelsTileSums<tiles, fragments>& sums) {
  using Words = FilterWords<fragments>;
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32;
  const int after = lane % 4 == 3 ? lane - 3 : lane + 1;
  unsigned char* to = shared.results() + row * b.result_row() + (lane % 4 * b.filters + lane / 4 * 2 * fragments) * 2;
  Words even = finish_pixel<fragments>(p.epilogue, finish, sums.d[0], 0);
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const Words odd = finish_pixel<fragments>(p.epilogue, finish, sums.d[tile], 1);
    // No window begins at the last two pixels of the last tile.
    const Words next = finish_pixel<fragments>(p.epilogue, finish, sums.d[tile + 1 < tiles ? tile + 1 : tile], 0);
    Words largest;
#pragma unroll
    for (int u = 0; u < fragments; ++u) {
      const uint32_t third = __shfl_sync(0xFFFFFFFFU, lane % 4 == 0 ? next.w[u] : even.w[u], after);
      largest.w[u] = max_fp16x2(max_fp16x2(even.w[u], odd.w[u]), third);
    }
    if (tile * 4 + lane % 4 < b.pooled_q) copy_words<fragments>(to + tile * 4 * b.filters * 2, largest);
    even = next;
  }
}

/// Pools a band's row maxima down the columns and stores y. One output row uses the band's first
/// three rows. The other one uses the last two rows of the band before and this band's first.
template <int fragments>
__device__ __forceinline__ void pool_down(const FewChannels& p, const FewChannelsShared& shared,
                                          const OutputBands::Band& band, bool first_of_walk, int first_filter) {
  using Words = FilterWords<fragments>;
  const OutputBands& b = p.bands;
  const int row_bytes = b.result_row();
  const int pooled_row = band.row / 2;
  const auto larger = [](const Words& one, const Words& other) {
    Words words;
#pragma unroll
    for (int u = 0; u < fragments; ++u) words.w[u] = max_fp16x2(one.w[u], other.w[u]);
    return words;
  };
  for (int i = static_cast<int>(threadIdx.x); i < b.pooled_q * 8; i += static_cast<int>(blockDim.x)) {
    unsigned char* at = shared.results() + i * static_cast<int>(sizeof(Words));
    Words rows[4];
#pragma unroll
    for (int row = 0; row < 4; ++row) rows[row] = *reinterpret_cast<const Words*>(at + row * row_bytes);
    auto& left = *reinterpret_cast<Words*>(at + 4 * row_bytes);
    const int filter = first_filter + i % 8 * 2 * fragments;
    const int pixel = (band.image * b.pooled_p + pooled_row) * b.pooled_q + i / 8;
    if (!first_of_walk && pooled_row <= b.pooled_p)
      store_filters<fragments>(p, pixel - b.pooled_q, filter, larger(left, rows[0]));
    if (pooled_row < b.pooled_p) store_filters<fragments>(p, pixel, filter, larger(larger(rows[0], rows[1]), rows[2]));
    left = larger(rows[2], rows[3]);
  }
}

}  // namespace nibblenet
