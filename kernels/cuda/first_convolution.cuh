#pragma once

#include "kernels/cuda/images.cuh"
#include "kernels/cuda/result.cuh"
#include "kernels/cuda/weights.cuh"

// Convolutions of few channels on the tensor cores, AlexNet's first one above all: implicit GEMM without a matrix of
// windows. In a channels-last image a window is `size` runs of size x C neighbouring halves. Where they begin at whole
// words, a lane finds each pair that mma.m16n8k16 wants of it as a word of the image's own rows in shared memory.
//
// k is therefore counted in pairs, in any order that both operands share: the host puts pairs together that eight
// neighbouring pixels read from different banks. A run of an odd number of halves has one more, whose weight is 0; what
// it meets there is finite unless the next pixel is not.

namespace nibblenet {

inline constexpr int most_pairs = 256;      ///< of a filter
inline constexpr int pairs_of_step = 8;     ///< one m16n8k16
inline constexpr int fragment_bytes = 512;  ///< of 16 filters in a step

/// Where pair `word` of kernel row r stands in the order of k: slot[r * words + word].
struct PairSlots {
  uint8_t slot[most_pairs];
};

/// The output pixels of a block: `rows` x `columns` of an image, in tiles of eight neighbours, and their input. A block
/// walks down `walk` bands of an image, and then begins anew elsewhere.
struct OutputBands {
  ConvolutionSizes sizes = {};
  int filters = 0;  ///< of a block: 16 a fragment
  int rows = 0, columns = 0;
  int walk = 1;
  int walk_rows = 0;         ///< from the first row of a walk to that of the next one
  int down = 0, across = 0;  ///< walks of an image
  int tiles_across = 0;      ///< of a band's row
  int height = 0;            ///< rows of input
  int pieces = 0;            ///< of 16 bytes that a row of input takes
  int pitch = 0;             ///< words from one row to the next one
  int words = 0;             ///< of a run
  int steps = 0;             ///< along k
  int pooled_p = 0;          ///< rows of y where results are pooled; 0: they are not
  int pooled_q = 0;          ///< and columns
  bool aligned = false;      ///< rows of x begin at 16 bytes, windows at words of them

  __host__ __device__ int walks() const { return sizes.n * down * across; }
  __host__ __device__ int tiles() const { return rows * tiles_across; }
  __host__ __device__ int run() const { return sizes.size * sizes.c; }  ///< halves
  __host__ __device__ int pairs() const { return sizes.size * words; }
  __host__ __device__ int step_bytes() const { return filters / 16 * fragment_bytes; }

  /// A walk, and the band that it has come to.
  struct Place {
    int walk, band;
  };
  __device__ Place next(Place place) const {
    if (place.band + 1 < walk) return {place.walk, place.band + 1};
    return {place.walk + static_cast<int>(gridDim.x), 0};
  }
  struct Band {
    int image, row, column;  ///< of its first output pixel
  };
  __device__ Band band(Place place) const {
    const int strip = place.walk / across;
    const int image = strip / down;
    return {image, (strip - image * down) * walk_rows + place.band * rows, (place.walk - strip * across) * columns};
  }
  /// Element of an image's row that a band's windows begin with; negative in the padding.
  __device__ int first_element(const Band& band) const {
    return (band.column * sizes.stride - sizes.padding) * sizes.c;
  }
  /// The element before it that a copy begins with.
  __device__ int first_copied(const Band& band) const { return first_element(band) & (aligned ? ~7 : ~0); }
};

struct FirstConvolution {
  OutputBands bands;
  const f16* x;
  BiasResult<f16*> result;
  float factor;  ///< of weights
  PairSlots order;
  bool whole_pieces;  ///< 8 filters of y are 16 aligned bytes
};

/// Dynamic shared memory of a block.
struct FirstShared {
  struct Pairs {
    int low, high;  ///< bytes from a window's beginning
  };
  struct Finish {
    float step, bias;
  };
  unsigned char* memory;
  const OutputBands& bands;

  __host__ __device__ static int input_at(const OutputBands& b) { return b.steps * b.step_bytes(); }
  __host__ __device__ static int pairs_at(const OutputBands& b) { return input_at(b) + b.height * b.pitch * 4; }
  __host__ __device__ static int finish_at(const OutputBands& b) {
    return pairs_at(b) + b.steps * 4 * static_cast<int>(sizeof(Pairs));
  }
  /// Needed until the filters are there; results to be pooled take the same memory afterwards.
  __host__ __device__ static int places_at(const OutputBands& b) {
    return finish_at(b) + b.filters * static_cast<int>(sizeof(Finish));
  }
  __host__ __device__ static int result_row(const OutputBands& b) { return b.pooled_q * b.filters * 2; }
  __host__ __device__ static int bytes(const OutputBands& b) {
    const int places = 2 * 2 * most_pairs, results = (b.rows + 1) * result_row(b);
    return places_at(b) + (places > results ? places : results);
  }

  __device__ unsigned char* filters() const { return memory; }
  __device__ unsigned char* input() const { return memory + input_at(bands); }
  /// [steps][4]: what lanes t of a step read.
  __device__ Pairs* pairs() const { return reinterpret_cast<Pairs*>(memory + pairs_at(bands)); }
  __device__ Finish* finish() const { return reinterpret_cast<Finish*>(memory + finish_at(bands)); }
  /// By weight, in device order: where it lies in row 0 of the filters.
  __device__ uint16_t* places() const { return reinterpret_cast<uint16_t*>(memory + places_at(bands)); }
  /// [row of a band][pooled column][filter]: maxima along rows. Behind them what a band's last two rows leave to the
  /// next one's first.
  __device__ unsigned char* results() const { return memory + places_at(bands); }
};

/// Filters lie step by step, in rows of 32 bytes whose two halves change places every four rows, so that ldmatrix meets
/// no bank twice. With U fragments of 16 rows, row 16 u + g + 8 h is filter 2 U g + 2 u + h: the sums of a lane are
/// then 2 U neighbouring filters. `place`: where the weight lies in row 0.
template <int fragments>
__device__ __forceinline__ int place_in_filters(int filter, int place) {
  constexpr int of_lane = 2 * fragments;
  const int row = filter % of_lane / 2 * 16 + filter / of_lane + filter % 2 * 8;
  return row * 32 + (place ^ (row >> 2 & 1) << 4);
}

/// All but the weights: tables, and zeros where no weight will be.
__device__ __forceinline__ void prepare_first_convolution(const FirstConvolution& p, const FirstShared& shared,
                                                          int first_filter) {
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const OutputBands& b = p.bands;
  auto* filters = reinterpret_cast<uint4*>(shared.filters());
  for (int i = thread; i < b.steps * b.step_bytes() / 16; i += threads) filters[i] = {0, 0, 0, 0};
  // A slot without a pair reads the window's first one, times 0.
  auto* offsets = reinterpret_cast<int*>(shared.pairs());
  for (int i = thread; i < b.steps * pairs_of_step; i += threads) offsets[i] = 0;
  __syncthreads();
  for (int i = thread; i < b.pairs(); i += threads) {
    const int slot = p.order.slot[i];
    const int step = slot / pairs_of_step;
    const int t = slot % 4, high = slot % pairs_of_step / 4;
    const int row = i / b.words;
    const int word = i - row * b.words;
    offsets[(step * 4 + t) * 2 + high] = (row * b.pitch + word) * 4;
    const int place = step * b.step_bytes() + high * 16 + t * 4;
    const int k = row * b.run() + 2 * word;
    shared.places()[k] = static_cast<uint16_t>(place);
    if (2 * word + 1 < b.run()) shared.places()[k + 1] = static_cast<uint16_t>(place + 2);
  }
  for (int i = thread; i < b.filters; i += threads) {
    FirstShared::Finish finish{1.0F, 0.0F};
    if (first_filter + i < p.result.rows) {
      const auto row = p.result.of_row(first_filter + i);
      finish = {row.step, row.bias};
    }
    shared.finish()[i] = finish;
  }
}

/// Halves need no arithmetic. A warp has eight pairs of all filters at a time: lane l pair l % 8 of the filters whose g
/// is l / 8 or l / 8 + 4, so that its words go to different banks. Many loads are under way at once.
template <int fragments>
__device__ __forceinline__ void load_filters(const FirstConvolution& p, const FirstShared& shared,
                                             const Float16Weights& weights, int first_filter, const CodeValues&) {
  constexpr int of_lane = 2 * fragments;
  constexpr int filters_at_once = 2 * of_lane;
  constexpr int pairs_at_once = 16 / filters_at_once;
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int filters = p.result.rows - first_filter;
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

/// Codes, eight at a time, rounded as the plain kernel rounds them. A warp has eight times eight weights of four
/// filters at a time, again for the banks' sake.
template <int fragments>
__device__ __forceinline__ void load_filters(const FirstConvolution& p, const FirstShared& shared,
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
    if (k >= length) continue;
    float w[8];
    weights.load8(first_filter + filter, k, table, w);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (k + e >= length) continue;
      const int place = place_in_filters<fragments>(filter, shared.places()[k + e]);
      store_element(reinterpret_cast<f16*>(shared.filters() + place), 0, w[e] * p.factor);
    }
  }
}

/// Starts copying a band's input, in one group; zeros in the padding and outside of x. A warp a row at a time.
__device__ __forceinline__ void copy_band(const FirstConvolution& p, const FirstShared& shared,
                                          const OutputBands::Band& band) {
  const OutputBands& b = p.bands;
  const ConvolutionSizes& s = b.sizes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = band.row * s.stride - s.padding;
  const int first = b.first_copied(band);
  const int row_elements = s.w * s.c;
  const f16* image = p.x + static_cast<int64_t>(band.image) * s.h * row_elements;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < b.height; row += static_cast<int>(blockDim.x) / 32) {
    const int h = first_row + row;
    const bool inside = h >= 0 && h < s.h;
    const f16* from = image + (inside ? h : 0) * row_elements;
    unsigned char* to = shared.input() + row * b.pitch * 4;
    if (b.aligned) {
      for (int piece = lane; piece < b.pieces; piece += 32) {
        const int element = first + piece * 8;
        const bool exists = inside && element >= 0 && element < row_elements;
        cp_async_16(to + piece * 16, exists ? from + element : p.x, exists);
      }
    } else {
      for (int i = lane; i < b.pieces * 8; i += 32) {
        const bool exists = inside && first + i >= 0 && first + i < row_elements;
        reinterpret_cast<f16*>(to)[i] = exists ? from[first + i] : f16{};
      }
    }
  }
  cp_async_commit();
}

/// What a warp multiplies in one step.
template <int tiles, int fragments>
struct StepOperands {
  uint32_t a[fragments][4];
  uint32_t b[tiles][2];
};

/// sums[tile][u][2 h + e]: filter 2 U g + 2 u + h of pixel 2 t + e of a tile.
template <int tiles, int fragments>
struct FirstSums {
  float d[tiles][fragments][4];
};

/// sums = filters x the windows that begin at `window`, of the lane's column of each tile: bytes from the input's
/// beginning. The next step's operands are read while one is multiplied.
template <int tiles, int fragments>
__device__ __forceinline__ void multiply_band(const FirstShared& shared, const int (&window)[tiles], int shift,
                                              FirstSums<tiles, fragments>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned char* input = shared.input() + shift;
  const FirstShared::Pairs* pairs = shared.pairs() + lane % 4;
  const unsigned char* filters = shared.filters() + lane % 16 * 32 + ((lane / 16 ^ (lane >> 2 & 1)) << 4);
  using Operands = StepOperands<tiles, fragments>;
  const auto load = [&](int step, Operands& to) {
    const FirstShared::Pairs pair = pairs[step * 4];
#pragma unroll
    for (int u = 0; u < fragments; ++u) ldmatrix_x4(to.a[u], filters + (step * fragments + u) * fragment_bytes);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      to.b[tile][0] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.low);
      to.b[tile][1] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.high);
    }
  };
  const auto multiply = [&](const Operands& from) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int u = 0; u < fragments; ++u) mma_16816(sums.d[tile][u], from.a[u], from.b[tile]);
  };
  const int steps = shared.bands.steps;
  Operands even, odd;
  load(0, even);
#pragma unroll 1
  for (int step = 0; step < steps; step += 2) {
    if (step + 1 < steps) load(step + 1, odd);
    multiply(even);
    if (step + 1 >= steps) break;
    if (step + 2 < steps) load(step + 2, even);
    multiply(odd);
  }
}

/// A lane's neighbouring filters of one pixel, two halves a word.
template <int fragments>
struct alignas(4 * fragments) FilterWords {
  uint32_t w[fragments];
};

/// Results from sums: finish[i] is of the lane's filter i.
template <int fragments>
__device__ __forceinline__ FilterWords<fragments> finish_pixel(const BiasResult<f16*>& result,
                                                               const FirstShared::Finish (&finish)[2 * fragments],
                                                               const float (&sums)[fragments][4], int e) {
  FilterWords<fragments> words;
#pragma unroll
  for (int u = 0; u < fragments; ++u) {
    f16 halves[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const FirstShared::Finish& of_filter = finish[2 * u + h];
      const BiasResult<f16*>::Row row{result.factor, of_filter.step, of_filter.bias, result.with_relu};
      store_element(&halves[h], 0, row(sums[u][2 * h + e]));
    }
    words.w[u] = halves[0].bits | static_cast<uint32_t>(halves[1].bits) << 16;
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

/// Neighbouring filters of a pixel of y.
template <int fragments>
__device__ __forceinline__ void store_filters(const FirstConvolution& p, int pixel, int filter,
                                              const FilterWords<fragments>& words) {
  f16* to = p.result.y + static_cast<int64_t>(pixel) * p.result.rows + filter;
  if (p.whole_pieces) {
    if (filter < p.result.rows) copy_words<fragments>(to, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < 2 * fragments; ++i)
    if (filter + i < p.result.rows) to[i].bits = static_cast<uint16_t>(words.w[i / 2] >> i % 2 * 16);
}

/// y from a warp's sums: the lanes of one t write all filters of a pixel.
template <int tiles, int fragments>
__device__ __forceinline__ void store_band(const FirstConvolution& p, const OutputBands::Band& band, int first_filter,
                                           const FirstShared::Finish (&finish)[2 * fragments],
                                           const FirstSums<tiles, fragments>& sums) {
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  const int filter = first_filter + lane / 4 * 2 * fragments;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_across;
    const int column = (first_tile + tile - row * b.tiles_across) * 8 + lane % 4 * 2;
    if (row >= b.rows || band.row + row >= b.sizes.p) continue;
    const int pixel = (band.image * b.sizes.p + band.row + row) * b.sizes.q + band.column + column;
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (column + e < b.columns && band.column + column + e < b.sizes.q)
        store_filters<fragments>(p, pixel + e, filter, finish_pixel<fragments>(p.result, finish, sums.d[tile], e));
  }
}

/// A warp's row of results as maxima of three neighbours, every other one, to shared memory: a lane has the first two
/// of them, and the lane of the next two pixels the third. All lanes.
template <int tiles, int fragments>
__device__ __forceinline__ void pool_along_row(const FirstConvolution& p, const FirstShared& shared,
                                               const FirstShared::Finish (&finish)[2 * fragments],
                                               const FirstSums<tiles, fragments>& sums) {
  using Words = FilterWords<fragments>;
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32;
  const int after = lane % 4 == 3 ? lane - 3 : lane + 1;
  unsigned char* to =
      shared.results() + row * FirstShared::result_row(b) + (lane % 4 * b.filters + lane / 4 * 2 * fragments) * 2;
  Words even = finish_pixel<fragments>(p.result, finish, sums.d[0], 0);
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const Words odd = finish_pixel<fragments>(p.result, finish, sums.d[tile], 1);
    // No window begins with the last tile's last two pixels.
    const Words next = finish_pixel<fragments>(p.result, finish, sums.d[tile + 1 < tiles ? tile + 1 : tile], 0);
    Words largest;
#pragma unroll
    for (int u = 0; u < fragments; ++u) {
      const uint32_t third = __shfl_sync(0xFFFFFFFFU, lane % 4 == 0 ? next.w[u] : even.w[u], after);
      largest.w[u] = max_halves(max_halves(even.w[u], odd.w[u]), third);
    }
    if (tile * 4 + lane % 4 < b.pooled_q) copy_words<fragments>(to + tile * 4 * b.filters * 2, largest);
    even = next;
  }
}

/// y from a band's maxima along rows: those of its first three rows, and those of the two before and its first.
template <int fragments>
__device__ __forceinline__ void pool_down(const FirstConvolution& p, const FirstShared& shared,
                                          const OutputBands::Band& band, bool first_of_walk, int first_filter) {
  using Words = FilterWords<fragments>;
  const OutputBands& b = p.bands;
  const int row_bytes = FirstShared::result_row(b);
  const int pooled_row = band.row / 2;
  const auto larger = [](const Words& one, const Words& other) {
    Words words;
#pragma unroll
    for (int u = 0; u < fragments; ++u) words.w[u] = max_halves(one.w[u], other.w[u]);
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

/// Where the lane's column of each of its warp's tiles finds its window: bytes from the input's beginning. Tiles behind
/// the last one read anything that is there.
template <int tiles>
__device__ __forceinline__ void find_windows(const OutputBands& b, int first_tile, int (&window)[tiles]) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_across;
    const int column = (first_tile + tile - row * b.tiles_across) * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int read = column < b.columns ? column : b.columns - 1;
    window[tile] = row < b.rows ? row * b.sizes.stride * b.pitch * 4 + read * b.sizes.stride * b.sizes.c * 2 : 0;
  }
}

inline constexpr int first_convolution_warps = 4;

/// y[pixel, k] = epilogue(sum over pairs), or the maxima of windows of 3 x 3 at every other pixel. Block (x, y) owns
/// 16 filters a fragment, which it decodes once, and every gridDim.x-th walk; a warp has all of these filters for
/// `tiles` times eight pixels, and where there is pooling these are a row. The input of the next band arrives while
/// results are written; two blocks on a multiprocessor fill what gaps are left.
template <class Weights, int tiles, int fragments, bool pooling>
__global__ void __launch_bounds__(32 * first_convolution_warps, 2)
    first_convolution_kernel(FirstConvolution p, Weights weights) {
  const FirstShared memory{dynamic_shared(), p.bands};
  const OutputBands& b = p.bands;
  const int first_filter = static_cast<int>(blockIdx.y) * b.filters;
  let_next_kernel_begin();
  auto& table = shared<CodeValues>();
  weights.prepare(table);
  prepare_first_convolution(p, memory, first_filter);
  __syncthreads();
  load_filters<fragments>(p, memory, weights, first_filter, table);
  wait_for_kernel_before();
  OutputBands::Place place{static_cast<int>(blockIdx.x), 0};
  copy_band(p, memory, b.band(place));

  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  int window[tiles];
  find_windows<tiles>(b, first_tile, window);
  while (place.walk < b.walks()) {
    const OutputBands::Band band = b.band(place);
    cp_async_wait<0>();
    __syncthreads();  // the band, and before the first one the filters, have arrived
    FirstSums<tiles, fragments> sums = {};
    if (first_tile < b.tiles())
      multiply_band<tiles, fragments>(memory, window, (b.first_element(band) - b.first_copied(band)) * 2, sums);
    __syncthreads();  // nobody reads this band any more
    const OutputBands::Place next = b.next(place);
    if (next.walk < b.walks()) copy_band(p, memory, b.band(next));
    FirstShared::Finish finish[2 * fragments];
#pragma unroll
    for (int i = 0; i < 2 * fragments; ++i)
      finish[i] = memory.finish()[static_cast<int>(threadIdx.x) % 32 / 4 * 2 * fragments + i];
    if constexpr (pooling) {
      pool_along_row<tiles, fragments>(p, memory, finish, sums);
      __syncthreads();
      pool_down<fragments>(p, memory, band, place.band == 0, first_filter);
    } else {
      store_band<tiles, fragments>(p, band, first_filter, finish, sums);
    }
    place = next;
  }
}

}  // namespace nibblenet
