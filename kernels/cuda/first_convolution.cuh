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

inline constexpr int filter_block = 64;     ///< filters of a block
inline constexpr int most_pairs = 256;      ///< of a filter
inline constexpr int pairs_of_step = 8;     ///< one m16n8k16
inline constexpr int step_bytes = 64 * 32;  ///< of 64 filters

/// Where pair `word` of kernel row r stands in the order of k: slot[r * words + word].
struct PairSlots {
  uint8_t slot[most_pairs];
};

/// The output pixels of a block: `rows` x `columns` of an image, in tiles of eight neighbours, and their input.
struct OutputBands {
  ConvolutionSizes sizes = {};
  int rows = 0, columns = 0;
  int down = 0, across = 0;  ///< bands of an image
  int tiles_across = 0;      ///< of a band's row
  int height = 0;            ///< rows of input
  int pieces = 0;            ///< of 16 bytes that a row of input takes
  int pitch = 0;             ///< words from one row to the next one
  int words = 0;             ///< of a run
  int steps = 0;             ///< along k
  bool aligned = false;      ///< rows of x begin at 16 bytes, windows at words of them

  __host__ __device__ int count() const { return sizes.n * down * across; }
  __host__ __device__ int tiles() const { return rows * tiles_across; }
  __host__ __device__ int run() const { return sizes.size * sizes.c; }  ///< halves
  __host__ __device__ int pairs() const { return sizes.size * words; }

  struct Band {
    int image, row, column;  ///< of its first output pixel
  };
  __device__ Band band(int index) const {
    const int strip = index / across;
    const int image = strip / down;
    return {image, (strip - image * down) * rows, (index - strip * across) * columns};
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

  __host__ __device__ static int input_at(const OutputBands& b) { return b.steps * step_bytes; }
  __host__ __device__ static int pairs_at(const OutputBands& b) { return input_at(b) + b.height * b.pitch * 4; }
  __host__ __device__ static int finish_at(const OutputBands& b) {
    return pairs_at(b) + b.steps * 4 * static_cast<int>(sizeof(Pairs));
  }
  __host__ __device__ static int places_at(const OutputBands& b) {
    return finish_at(b) + filter_block * static_cast<int>(sizeof(Finish));
  }
  __host__ __device__ static int bytes(const OutputBands& b) { return places_at(b) + 2 * 2 * most_pairs; }

  __device__ unsigned char* filters() const { return memory; }
  __device__ unsigned char* input() const { return memory + input_at(bands); }
  /// [steps][4]: what lanes t of a step read.
  __device__ Pairs* pairs() const { return reinterpret_cast<Pairs*>(memory + pairs_at(bands)); }
  __device__ Finish* finish() const { return reinterpret_cast<Finish*>(memory + finish_at(bands)); }
  /// By weight, in device order: where it lies in row 0 of the filters.
  __device__ uint16_t* places() const { return reinterpret_cast<uint16_t*>(memory + places_at(bands)); }
};

/// Filters lie step by step, in rows of 32 bytes whose two halves change places every four rows, so that ldmatrix meets
/// no bank twice. Row 16 u + g + 8 h is filter 8 g + 2 u + h: the sums of a lane are then eight neighbouring filters.
/// `place`: where the weight lies in row 0.
__device__ __forceinline__ int place_in_filters(int filter, int place) {
  const int row = filter % 8 / 2 * 16 + filter / 8 + filter % 2 * 8;
  return row * 32 + (place ^ (row >> 2 & 1) << 4);
}

/// All but the weights: tables, and zeros where no weight will be.
__device__ __forceinline__ void prepare_first_convolution(const FirstConvolution& p, const FirstShared& shared,
                                                          int first_filter) {
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const OutputBands& b = p.bands;
  auto* filters = reinterpret_cast<uint4*>(shared.filters());
  for (int i = thread; i < b.steps * step_bytes / 16; i += threads) filters[i] = {0, 0, 0, 0};
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
    const int place = step * step_bytes + high * 16 + t * 4;
    const int k = row * b.run() + 2 * word;
    shared.places()[k] = static_cast<uint16_t>(place);
    if (2 * word + 1 < b.run()) shared.places()[k + 1] = static_cast<uint16_t>(place + 2);
  }
  for (int i = thread; i < filter_block; i += threads) {
    FirstShared::Finish finish{1.0F, 0.0F};
    if (first_filter + i < p.result.rows) {
      const auto row = p.result.of_row(first_filter + i);
      finish = {row.step, row.bias};
    }
    shared.finish()[i] = finish;
  }
}

/// Halves need no arithmetic. A warp has eight pairs at a time, of all filters: lane l pair l % 8 of the filters whose
/// g is l / 8 or l / 8 + 4, so that its words go to different banks. All loads are under way at once.
__device__ __forceinline__ void load_filters(const FirstConvolution& p, const FirstShared& shared,
                                             const Float16Weights& weights, int first_filter, const CodeValues&) {
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_g = lane / 8;
  const int filters = p.result.rows - first_filter;
  const int length = weights.sizes.length;
  const f16* from = weights.values + static_cast<int64_t>(first_filter) * length;
#pragma unroll 1
  for (int pair = static_cast<int>(threadIdx.x) / 32 * 8 + lane % 8; pair < b.pairs();
       pair += static_cast<int>(blockDim.x) / 4) {
    const int row = pair / b.words;
    const int in_run = 2 * (pair - row * b.words);
    const int k = row * b.run() + in_run;
    const bool both = in_run + 1 < b.run();
    uint32_t words[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int filter = (first_g + i / 8 * 4) * 8 + i % 8;
      const f16* at = from + filter * length + k;
      const uint32_t low = filter < filters ? at[0].bits : 0;
      const uint32_t high = filter < filters && both ? at[1].bits : 0;
      words[i] = low | high << 16;
    }
    const int place = shared.places()[k];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int filter = (first_g + i / 8 * 4) * 8 + i % 8;
      *reinterpret_cast<uint32_t*>(shared.filters() + place_in_filters(filter, place)) = words[i];
    }
  }
}

/// Codes, eight at a time, rounded as the plain kernel rounds them. A warp has eight times eight weights of four
/// filters at a time, again for the banks' sake.
__device__ __forceinline__ void load_filters(const FirstConvolution& p, const FirstShared& shared,
                                             const PackedWeights& weights, int first_filter, const CodeValues& table) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int length = weights.sizes.length;
  const int items = (length + 63) / 64 * 16;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x) / 32; item < items; item += static_cast<int>(blockDim.x) / 32) {
    const int k = item / 16 * 64 + lane % 8 * 8;
    const int filter = (lane / 8 + item % 16 / 8 * 4) * 8 + item % 8;
    if (k >= length) continue;
    float w[8];
    weights.load8(first_filter + filter, k, table, w);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (k + e >= length) continue;
      auto* to = reinterpret_cast<f16*>(shared.filters() + place_in_filters(filter, shared.places()[k + e]));
      store_element(to, 0, w[e] * p.factor);
    }
  }
}

/// Starts copying a band's input, in one group; zeros in the padding and outside of x. A warp a row at a time.
__device__ __forceinline__ void copy_band(const FirstConvolution& p, const FirstShared& shared, int index) {
  const OutputBands& b = p.bands;
  const ConvolutionSizes& s = b.sizes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const OutputBands::Band band = b.band(index);
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
template <int tiles>
struct StepFragments {
  uint32_t a[4][4];
  uint32_t b[tiles][2];
};

/// sums[tile][u][2 h + e]: filter 8 g + 2 u + h of pixel 2 t + e of a tile.
template <int tiles>
struct FirstSums {
  float d[tiles][4][4];
};

/// sums = filters x the windows that begin at `window`, of the lane's column of each tile: bytes from the input's
/// beginning. The next step's operands are read while one is multiplied.
template <int tiles>
__device__ __forceinline__ void multiply_band(const FirstShared& shared, const int (&window)[tiles], int shift,
                                              FirstSums<tiles>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned char* input = shared.input() + shift;
  const FirstShared::Pairs* pairs = shared.pairs() + lane % 4;
  const unsigned char* filters = shared.filters() + lane % 16 * 32 + ((lane / 16 ^ (lane >> 2 & 1)) << 4);
  const auto load = [&](int step, StepFragments<tiles>& to) {
    const FirstShared::Pairs pair = pairs[step * 4];
#pragma unroll
    for (int u = 0; u < 4; ++u) ldmatrix_x4(to.a[u], filters + step * step_bytes + u * 512);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      to.b[tile][0] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.low);
      to.b[tile][1] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.high);
    }
  };
  const auto multiply = [&](const StepFragments<tiles>& from) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int u = 0; u < 4; ++u) mma_16816(sums.d[tile][u], from.a[u], from.b[tile]);
  };
  const int steps = shared.bands.steps;
  StepFragments<tiles> even, odd;
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

/// Eight filters of an output pixel.
__device__ __forceinline__ void store_filters(const FirstConvolution& p, int pixel, int filter, const uint4& v) {
  f16* to = p.result.y + static_cast<int64_t>(pixel) * p.result.rows + filter;
  if (p.whole_pieces) {
    *reinterpret_cast<uint4*>(to) = v;
    return;
  }
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (filter + e < p.result.rows) to[e].bits = static_cast<uint16_t>(words[e / 2] >> e % 2 * 16);
}

/// y from a warp's sums: the lanes of one t write all 64 filters of a pixel.
template <int tiles>
__device__ __forceinline__ void store_band(const FirstConvolution& p, const FirstShared& shared, int index,
                                           int first_filter, const FirstSums<tiles>& sums) {
  const OutputBands& b = p.bands;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  const OutputBands::Band band = b.band(index);
  const int filter = lane / 4 * 8;
  if (first_filter + filter >= p.result.rows) return;
  FirstShared::Finish finish[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) finish[e] = shared.finish()[filter + e];
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_across;
    const int column = (first_tile + tile - row * b.tiles_across) * 8 + lane % 4 * 2;
    if (row >= b.rows || band.row + row >= b.sizes.p) continue;
    const int pixel = (band.image * b.sizes.p + band.row + row) * b.sizes.q + band.column + column;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (column + e >= b.columns || band.column + column + e >= b.sizes.q) continue;
      uint32_t words[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        f16 halves[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const FirstShared::Finish& of_filter = finish[2 * u + h];
          const BiasResult<f16*>::Row row_of_result{p.result.factor, of_filter.step, of_filter.bias,
                                                    p.result.with_relu};
          store_element(&halves[h], 0, row_of_result(sums.d[tile][u][2 * h + e]));
        }
        words[u] = halves[0].bits | static_cast<uint32_t>(halves[1].bits) << 16;
      }
      store_filters(p, pixel + e, first_filter + filter, {words[0], words[1], words[2], words[3]});
    }
  }
}

/// y[pixel, k] = epilogue(sum over pairs). Block (x, y) owns 64 filters, which it decodes once, and every gridDim.x-th
/// band of output pixels; a warp has all 64 filters of `tiles` times eight pixels. The input of the next band arrives
/// while results are written; two blocks on a multiprocessor fill what gaps are left.
template <class Weights, int tiles, int threads>
__global__ void __launch_bounds__(threads, 2) first_convolution_kernel(FirstConvolution p, Weights weights) {
  const FirstShared memory{dynamic_shared(), p.bands};
  const OutputBands& b = p.bands;
  const int first_filter = static_cast<int>(blockIdx.y) * filter_block;
  let_next_kernel_begin();
  auto& table = shared<CodeValues>();
  weights.prepare(table);
  prepare_first_convolution(p, memory, first_filter);
  __syncthreads();
  load_filters(p, memory, weights, first_filter, table);
  wait_for_kernel_before();
  auto index = static_cast<int>(blockIdx.x);
  const int step = static_cast<int>(gridDim.x);
  copy_band(p, memory, index);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  int window[tiles];
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_across;
    const int column = (first_tile + tile - row * b.tiles_across) * 8 + lane / 4;
    const int read = column < b.columns ? column : b.columns - 1;
    // Tiles behind the last one read anything that is there.
    window[tile] = row < b.rows ? row * b.sizes.stride * b.pitch * 4 + read * b.sizes.stride * b.sizes.c * 2 : 0;
  }
  for (; index < b.count(); index += step) {
    cp_async_wait<0>();
    __syncthreads();  // the band, and before the first one the filters, have arrived
    FirstSums<tiles> sums = {};
    if (first_tile < b.tiles()) {
      const OutputBands::Band band = b.band(index);
      multiply_band<tiles>(memory, window, (b.first_element(band) - b.first_copied(band)) * 2, sums);
    }
    __syncthreads();  // nobody reads this band any more
    if (index + step < b.count()) copy_band(p, memory, index + step);
    if (first_tile < b.tiles()) store_band<tiles>(p, memory, index, first_filter, sums);
  }
}

}  // namespace nibblenet
