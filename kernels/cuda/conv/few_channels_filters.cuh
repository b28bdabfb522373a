#pragma once

#include "kernels/cuda/conv/few_channels_layout.cuh"
#include "kernels/cuda/weights/readers.cuh"

// Loads the filters of few_channels.cuh into shared memory.

namespace nibblenet {

/// Byte offset of a weight among the filters in shared memory. Filters lie k-tile by k-tile, in
/// rows of 32 bytes. The two halves of a row swap every four rows, so that ldmatrix has no bank
/// conflict. With U fragments of 16 rows, row 16 u + g + 8 h is filter 2 U g + 2 u + h: a lane's
/// sums are then 2 U neighbouring filters. `place`: offset of the weight in row 0.
template <int fragments>
__device__ __forceinline__ int place_in_filters(int filter, int place) {
  constexpr int of_lane = 2 * fragments;
  const int row = filter % of_lane / 2 * 16 + filter / of_lane + filter % 2 * 8;
  return row * 32 + (place ^ (row >> 2 & 1) << 4);
}

/// Starts copying the codes of the block's filters to shared memory. Decoding them from there waits
/// once for memory, not once for every eight weights.
__device__ __forceinline__ void copy_codes(const FewChannels& p, const FewChannelsShared& shared,
                                           const PackedWeights& weights, int first_filter) {
  const OutputBands& b = p.bands;
  const int left = weights.sizes.rows - first_filter;
  const int vectors = (left < b.filters ? left : b.filters) * b.code_stride / 16;
  const uint8_t* from = weights.packed.codes + static_cast<int64_t>(first_filter) * b.code_stride;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += static_cast<int>(blockDim.x))
    cp_async_16(shared.codes() + i * 16, from + i * 16, true);
}
__device__ __forceinline__ void copy_codes(const FewChannels&, const FewChannelsShared&, const Float16Weights&, int) {}

/// Prepares shared memory for the filters: writes the tables, and zeros where no weight will be.
__device__ __forceinline__ void prepare_few_channels(const FewChannels& p, const FewChannelsShared& shared,
                                                     int first_filter) {
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const OutputBands& b = p.bands;
  auto* filters = reinterpret_cast<uint4*>(shared.filters());
  for (int i = thread; i < b.k_tiles * b.k_tile_bytes() / 16; i += threads) filters[i] = {0, 0, 0, 0};
  // A slot without a pair reads the window's first pair and multiplies it by 0.
  auto* offsets = reinterpret_cast<int*>(shared.pairs());
  for (int i = thread; i < b.k_tiles * few_channels_k_tile_pairs; i += threads) offsets[i] = 0;
  __syncthreads();
  for (int i = thread; i < b.pairs(); i += threads) {
    const int slot = p.order.slot[i];
    const int k_tile = slot / few_channels_k_tile_pairs;
    const int t = slot % 4, high = slot % few_channels_k_tile_pairs / 4;
    const int row = i / b.words;
    const int word = i - row * b.words;
    offsets[(k_tile * 4 + t) * 2 + high] = (row * b.pitch + word) * 4;
    const int place = k_tile * b.k_tile_bytes() + high * 16 + t * 4;
    const int k = row * b.run() + 2 * word;
    shared.places()[k] = static_cast<uint16_t>(place);
    if (2 * word + 1 < b.run()) shared.places()[k + 1] = static_cast<uint16_t>(place + 2);
  }
  for (int i = thread; i < b.filters; i += threads) {
    FewChannelsShared::Finish finish{1.0F, 0.0F};
    if (first_filter + i < p.epilogue.rows) {
      const auto row = p.epilogue.of_row(first_filter + i);
      finish = {row.step, row.bias};
    }
    shared.finish()[i] = finish;
  }
}

/// Loads fp16 weights, which need no arithmetic. A warp takes eight pairs of all filters at a time.
/// Lane l has pair l % 8 of the filters whose g is l / 8 or l / 8 + 4: its words go to different
/// banks. Many loads are in flight at once.
template <int fragments>
__device__ __forceinline__ void load_filters(const FewChannels& p, const FewChannelsShared& shared,
                                             const Float16Weights& weights, int first_filter, const CodeValues&) {
  constexpr int of_lane = 2 * fragments;
  constexpr int filters_at_once = 2 * of_lane;
  constexpr int pairs_at_once = 16 / filters_at_once;
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int filters = p.epilogue.rows - first_filter;
  const int length = weights.sizes.length;
  const f16* from = weights.values + static_cast<int64_t>(first_filter) * length;
  const auto filter_of = [&](int i) { return (lane / 8 + i / of_lane * 4) * of_lane + i % of_lane; };
  const int stride = static_cast<int>(blockDim.x) / 4;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / 32 * 8 + lane % 8; first < b.pairs();
       first += pairs_at_once * stride) {
    uint32_t words[pairs_at_once][filters_at_once];
    int k[pairs_at_once];
#pragma unroll
    for (int j = 0; j < pairs_at_once; ++j) {
      const int pair = first + j * stride;
      const int row = pair / b.words;
      const int in_run = 2 * (pair - row * b.words);
      k[j] = row * b.run() + in_run;
      const bool both = in_run + 1 < b.run();
#pragma unroll
      for (int i = 0; i < filters_at_once; ++i) {
        const bool exists = pair < b.pairs() && filter_of(i) < filters;
        const f16* at = from + filter_of(i) * length + k[j];
        const uint32_t low = exists ? at[0].bits : 0;
        const uint32_t high = exists && both ? at[1].bits : 0;
        words[j][i] = low | high << 16;
      }
    }
#pragma unroll
    for (int j = 0; j < pairs_at_once; ++j) {
      if (first + j * stride >= b.pairs()) continue;
      const int place = shared.places()[k[j]];
#pragma unroll
      for (int i = 0; i < filters_at_once; ++i)
        *reinterpret_cast<uint32_t*>(shared.filters() + place_in_filters<fragments>(filter_of(i), place)) = words[j][i];
    }
  }
}

/// Calls use(e, w) for weights k + e, 0 <= e < 8, of a row that exists: decoded, and rounded as the
/// plain kernel rounds them. `codes`: of the row, or a copy. Where weights differ in their groups,
/// one is decoded after the other: eight times that code would not stay in the instruction cache.
template <class Use>
__device__ __forceinline__ void decode_eight(const PackedWeights& weights, const uint8_t* codes, int row, int k,
                                             const CodeValues& table, Use use) {
  if (weights.packed.trellis_quarters > 0) {
    float w[8];
    weights.load8_of_strings(row, k, w);
#pragma unroll
    for (int e = 0; e < 8; ++e) use(e, w[e]);
    return;
  }
  const uint64_t eight = weights.load_from_channel(codes, k);
  const auto value = [&](int e) {
    return table.values[static_cast<uint32_t>(eight >> (e * weights.packed.bits)) & ((1U << weights.packed.bits) - 1U)];
  };
  const int channels = weights.sizes.channels;
  int tap = k / channels;
  int channel = k - tap * channels;
  int64_t group = weights.group(row, k, channel, tap);
  float step = weights.step(group);
  float zero = weights.zero_point(group);
  if (weights.shares_group(k)) {
#pragma unroll
    for (int e = 0; e < 8; ++e) use(e, reconstruct(value(e), zero, step));
    return;
  }
#pragma unroll 1
  for (int e = 0; e < 8 && k + e < weights.sizes.length; ++e) {
    if (const int64_t next = weights.group(row, k + e, channel, tap); next != group) {
      group = next;
      step = weights.step(group);
      zero = weights.zero_point(group);
    }
    use(e, reconstruct(value(e), zero, step));
    if (++channel == channels) {
      channel = 0;
      ++tap;
    }
  }
}

/// Loads packed weights, eight at a time. A warp takes eight times eight weights of four filters at
/// a time, again to avoid bank conflicts. Filters that do not exist stay zeros.
template <int fragments>
__device__ __forceinline__ void load_filters(const FewChannels& p, const FewChannelsShared& shared,
                                             const PackedWeights& weights, int first_filter, const CodeValues& table) {
  constexpr int of_lane = 2 * fragments;
  constexpr int filters_at_once = 2 * of_lane;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int length = weights.sizes.length;
  const int items = (length + 63) / 64 * filters_at_once;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x) / 32; item < items; item += static_cast<int>(blockDim.x) / 32) {
    const int k = item / filters_at_once * 64 + lane % 8 * 8;
    const int i = item % filters_at_once;
    const int filter = (lane / 8 + i / of_lane * 4) * of_lane + i % of_lane;
    const int row = first_filter + filter;
    if (k >= length || row >= weights.sizes.rows) continue;
    const uint8_t* codes = p.bands.code_stride > 0 ? shared.codes() + filter * p.bands.code_stride
                                                   : weights.packed.codes + row * weights.packed.code_stride;
    decode_eight(weights, codes, row, k, table, [&](int e, float w) {
      if (k + e >= length) return;
      const int place = place_in_filters<fragments>(filter, shared.places()[k + e]);
      store_element(reinterpret_cast<f16*>(shared.filters() + place), 0, w * p.factor);
    });
  }
}

}  // namespace nibblenet
