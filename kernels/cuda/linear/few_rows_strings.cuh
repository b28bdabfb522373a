#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cuda/linear/few_rows_digits.cuh"
#include "kernels/cuda/linear/few_rows_results.cuh"
#include "kernels/cuda/weights/string_windows.cuh"

// Linear layers of few rows, of trellis weights in string blocks: decoded in registers (QTIP, Tseng
// 2024, arXiv 2406.11235), multiplied on the tensor cores. A value is the sum of four bytes, less
// 126. Two rows or one take that sum on the tensor cores too: x becomes whole numbers of three
// digits, and each byte is an element of the product. More rows add the bytes up first, as fp16
// values.

namespace nibblenet {

inline constexpr int few_rows_strings_warps = 8;  ///< of a block, which take string blocks of a sequence in turn
inline constexpr int few_rows_strings_threads = 32 * few_rows_strings_warps;
static_assert(few_rows_strings_threads == trellis_sequence);  // a thread for each row

/// Parameters of the kernel: y [batch, rows] from x [batch, columns] and strings [rows, columns].
struct FewRowsStrings {
  StringBlocks layout;
  const uint8_t* codes;
  const f16* x;
  int columns;  ///< a multiple of 16
  SplitResults results;
};

/// String blocks of a warp: block, block + 8, … before `end`, of a sequence.
struct StringShare {
  int sequence;
  int lanes;
  int begin;  ///< of the thread block's split
  int block;
  int end;
};

/// The sums of a warp: d[f][tile] is fragment f. Its rows g and g + 8 are channels 32 g + 2 f and
/// the next one, times 2^window_scale() of these.
template <class Number, int tiles>
struct StringSums {
  static constexpr int fours = StringBlocks::fragments * tiles;
  struct alignas(16) Four {
    Number e[4];
  };
  Number d[StringBlocks::fragments][tiles][4];

  /// Fragment and tile i.
  __device__ __forceinline__ Four four(int i) const {
    const Number(&of)[4] = d[i / tiles][i % tiles];
    return {{of[0], of[1], of[2], of[3]}};
  }
  __device__ __forceinline__ void add(int i, const Four& other) {
#pragma unroll
    for (int e = 0; e < 4; ++e) d[i / tiles][i % tiles][e] += other.e[e];
  }
};

/// Products by x of up to two rows as digits.
class DigitProduct {
 public:
  static constexpr int tiles = 1;
  static constexpr int most_blocks = digit_most_blocks;  ///< of a split
  using Number = int32_t;
  using Memory = RowDigits;

  /// Makes the digits. All threads.
  __device__ DigitProduct(const FewRowsStrings& p, const StringShare& share, Memory& memory) {
    make_digits(p.x, p.results.batch, p.columns, share.begin, share.end, memory, shared<RowFactors>());
    const int lane = static_cast<int>(threadIdx.x) % 32, column = lane / 4;
    from_ = memory.digits[share.block - share.begin][column < digit_columns ? column : 0] + lane % 4 * 4;
  }
  /// sums += block * x for the warp's next block, whose rows are scaled as the sums are.
  template <int quarters>
  __device__ __forceinline__ void multiply(const LaneStrings<quarters>& strings, StringSums<Number, tiles>& sums) {
    const uint32_t x = *reinterpret_cast<const uint32_t*>(from_);  // a digit of four columns
    from_ += few_rows_strings_warps * sizeof(Memory::digits[0]);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const auto& even = strings.of_column[2 * pair];
      const auto& odd = strings.of_column[2 * pair + 1];
      const uint32_t b[2] = {permute_bytes(x, 0, 0x2222U * pair), permute_bytes(x, 0, 0x2222U * pair + 0x1111U)};
#pragma unroll
      for (int f = 0; f < StringBlocks::fragments; ++f) {
        const uint32_t a[4] = {scaled_parts<quarters>(even, 2 * f), scaled_parts<quarters>(even, 2 * f + 1),
                               scaled_parts<quarters>(odd, 2 * f), scaled_parts<quarters>(odd, 2 * f + 1)};
        mma_16832(sums.d[f][0], a, b);
      }
    }
  }
  template <int quarters>
  __device__ void finish(StringSums<Number, tiles>&) const {}
  /// A sum divided by 2^scale.
  static __device__ __forceinline__ Number unscaled(Number sum, int scale) { return sum >> scale; }
  /// The sum of row n of x, of the sums of its digits.
  template <class SumOf>
  static __device__ __forceinline__ float total(int n, SumOf sum_of) {
    const RowFactors& factors = shared<RowFactors>();
    const auto of_digit = [&](int d) {
      const int i = digits_each * n + d;
      return static_cast<float>(sum_of(i) - trellis_largest_value * factors.sum[i]);
    };
    return fmaf(of_digit(2), 65536.0F, fmaf(of_digit(1), 256.0F, of_digit(0))) * factors.factor[n];
  }

 private:
  const uint8_t* from_;
};

/// Products by x of up to 8 tiles rows in fp16. The sum of bytes is a subnormal fp16 value: its
/// bits are the whole number, which stands for 2^-24 times it.
template <int tiles_of_x>
class HalfProduct {
 public:
  static constexpr int tiles = tiles_of_x;
  static constexpr int most_blocks = std::numeric_limits<int>::max();
  using Number = float;
  struct Memory {};

  __device__ HalfProduct(const FewRowsStrings& p, const StringShare& share, Memory&)
      : left_((share.end - share.block + few_rows_strings_warps - 1) / few_rows_strings_warps) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const int n = 8 * tile + lane / 4;
      from_[tile] = p.x + static_cast<int64_t>(n < p.results.batch ? n : 0) * p.columns +
                    share.block * StringBlocks::columns + lane % 4 * 4;
    }
    load();
  }
  template <int quarters>
  __device__ __forceinline__ void multiply(const LaneStrings<quarters>& strings, StringSums<Number, tiles>& sums) {
    constexpr uint32_t mean = in_both_halves(trellis_largest_value);
    constexpr uint32_t means[4] = {mean, mean, mean, mean};
    uint32_t b[tiles][2];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      b[tile][0] = next_[tile].x;
      b[tile][1] = next_[tile].y;
    }
    load();
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) mma_16816(x_sums_[tile], means, b[tile]);
#pragma unroll
    for (int f = 0; f < StringBlocks::fragments; ++f) {
      uint32_t a[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = scaled_sums<quarters>(strings, r / 2 * 2, 2 * f + r % 2);
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) mma_16816(sums.d[f][tile], a, b[tile]);
    }
  }
  /// Takes 126 times the sum of x, scaled as the sums are, from each.
  template <int quarters>
  __device__ void finish(StringSums<Number, tiles>& sums) const {
#pragma unroll
    for (int f = 0; f < StringBlocks::fragments; ++f)
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums.d[f][tile][e] -= x_sums_[tile][e] * static_cast<float>(1 << window_scale<quarters>(2 * f + e / 2));
  }
  static __device__ __forceinline__ Number unscaled(Number sum, int scale) {
    return sum * (1.0F / static_cast<float>(1 << scale));
  }
  template <class SumOf>
  static __device__ __forceinline__ float total(int n, SumOf sum_of) {
    return sum_of(n) * 16777216.0F;
  }

 private:
  /// Loads x for the warp's next block, if there is one. Sums of rows that x does not have are not
  /// used.
  __device__ __forceinline__ void load() {
    if (left_-- <= 0) return;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      next_[tile] = *reinterpret_cast<const uint2*>(from_[tile]);
      from_[tile] += few_rows_strings_warps * StringBlocks::columns;
    }
  }

  const f16* from_[tiles];
  uint2 next_[tiles] = {};
  int left_;                     ///< blocks whose x is not loaded yet
  float x_sums_[tiles][4] = {};  ///< 126 times the sum of x, in the sums' places of every row
};

/// Shared memory of a block: what the product keeps of x and the rings, then the sums of half of
/// the warps, then those of the block's rows. Padding spreads rows over the banks.
template <int quarters, class Product, int stages>
union FewRowsStringsShared {
  using Sums = StringSums<typename Product::Number, Product::tiles>;
  struct Stage {
    alignas(16) unsigned char blocks[few_rows_strings_warps][StringBlocks::columns * 8 * quarters];
  };
  struct {
    typename Product::Memory x;
    Stage ring[stages];
  } operands;
  typename Sums::Four of_lanes[few_rows_strings_warps / 2][Sums::fours][32];
  typename Product::Number sums[8 * Product::tiles][trellis_sequence + 12];

  /// Place of a channel among the sums.
  static __device__ int place(int channel) { return channel + channel / StringBlocks::lane_channels; }
  /// Bytes that a block needs whose warps have at most `blocks` each.
  static size_t bytes(int64_t blocks) {
    const size_t unused = static_cast<size_t>(stages > blocks ? stages - blocks : 0) * sizeof(Stage);
    return std::max({sizeof(operands) - unused, sizeof(of_lanes), sizeof(sums)});
  }
};
/// Blocks of a warp in flight or in use: as many as shared memory holds, but no more than pay.
template <int quarters, class Product>
constexpr int few_rows_strings_stages(bool of_90) {
  const int bytes = few_rows_shared_bytes(of_90) - static_cast<int>(sizeof(typename Product::Memory));
  return std::min(16, bytes / (few_rows_strings_warps * StringBlocks::columns * 8 * quarters));
}

/// A warp's copies of its share: each is a block.
template <int quarters>
class StringCopies {
 public:
  __device__ StringCopies(const FewRowsStrings& p, const StringShare& share)
      : from_(p.codes + p.layout.offset(share.sequence, share.block) + threadIdx.x % 32 * 16),
        step_(few_rows_strings_warps * static_cast<int>(p.layout.bytes_each(share.sequence))),
        vectors_(share.lanes * quarters / 4 - static_cast<int>(threadIdx.x % 32)),
        left_(share.end - share.block) {}

  /// Starts copying the next block, if there is one, and closes its cp.async group.
  __device__ __forceinline__ void start(unsigned char* to) {
    to += threadIdx.x % 32 * 16;
#pragma unroll
    for (int i = 0; i < 8 * quarters; i += 32)
      if (left_ > 0 && i < vectors_) cp_async_16(to + i * 16, from_ + i * 16, true);
    cp_async_commit();
    from_ += step_;
    left_ -= few_rows_strings_warps;
  }

 private:
  const uint8_t* from_;
  int step_;
  int vectors_;  ///< of 16 bytes, from the lane's first on
  int left_;     ///< above 0 while there are blocks
};

/// Sums of a warp's share. `at_once`: all of it is on its way, and the sequence has channels for
/// every lane, so that a turn of the loop has little else to do than to decode.
template <bool at_once, int quarters, class Product, class Ring>
__device__ __forceinline__ void sum_strings(const StringShare& share, Ring& ring, StringCopies<quarters>& copies,
                                            Product& product,
                                            StringSums<typename Product::Number, Product::tiles>& sums) {
  constexpr int stages = std::extent_v<Ring>;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const LanePlace<quarters> at(at_once ? 32 : share.lanes);
  int stage = 0, free_stage = stages - 1;
#pragma unroll 1
  for (int block = share.block; block < share.end; block += few_rows_strings_warps) {
    cp_async_wait<at_once ? stages - 1 : stages - 2>();
    __syncwarp();  // the block has landed, and all lanes have read the one before
    if constexpr (at_once)
      cp_async_commit();
    else
      copies.start(ring[free_stage].blocks[warp]);
    LaneStrings<quarters> strings;
    read_strings<quarters>(ring[stage].blocks[warp], at, strings);
    free_stage = stage++;
    if (!at_once && stage == stages) stage = 0;
    product.multiply(strings, sums);
  }
  cp_async_wait<0>();
}

/// Adds up the sums of all warps, always in the same order; the first warp gets them. All threads.
template <class Four, class Sums>
__device__ __forceinline__ void add_up_warps(Four (&of_lanes)[few_rows_strings_warps / 2][Sums::fours][32],
                                             Sums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int half = few_rows_strings_warps / 2; half > 0; half /= 2) {
    __syncthreads();
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < Sums::fours; ++i) of_lanes[warp - half][i][lane] = sums.four(i);
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int i = 0; i < Sums::fours; ++i) sums.add(i, of_lanes[warp][i][lane]);
    }
  }
  __syncthreads();
}

/// A block of few_rows_strings_kernel, with `stages` of the rings.
template <int quarters, class Product, int stages>
__device__ __forceinline__ void few_rows_strings_block(const FewRowsStrings& p) {
  auto& memory = *reinterpret_cast<FewRowsStringsShared<quarters, Product, stages>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const auto sequence = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y);
  const int64_t blocks = p.layout.blocks();
  const auto begin = static_cast<int>(blocks * split / p.results.splits);
  const StringShare share{sequence, p.layout.lanes(sequence), begin, begin + warp,
                          static_cast<int>(blocks * (split + 1) / p.results.splits)};
  pdl_trigger();
  auto& ring = memory.operands.ring;
  const bool at_once = share.lanes == 32 && share.end - share.begin <= stages * few_rows_strings_warps;
  StringCopies<quarters> copies(p, share);
#pragma unroll 1
  for (int i = 0; i < (at_once ? stages : stages - 1); ++i) copies.start(ring[i].blocks[warp]);
  pdl_wait();  // the kernel before made x
  Product product(p, share, memory.operands.x);
  StringSums<typename Product::Number, Product::tiles> sums = {};
  if (at_once)
    sum_strings<true>(share, ring, copies, product, sums);
  else
    sum_strings<false>(share, ring, copies, product, sums);
  product.template finish<quarters>(sums);
  add_up_warps(memory.of_lanes, sums);
  if (warp == 0 && lane < share.lanes) {
#pragma unroll
    for (int f = 0; f < StringBlocks::fragments; ++f)
#pragma unroll
      for (int tile = 0; tile < Product::tiles; ++tile)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          memory.sums[8 * tile + lane % 4 * 2 + e % 2]
                     [memory.place(lane / 4 * StringBlocks::lane_channels + 2 * f + e / 2)] =
              Product::unscaled(sums.d[f][tile][e], window_scale<quarters>(2 * f + e / 2));
  }
  __syncthreads();
  finish_split(p.results, sequence * static_cast<int>(trellis_sequence) + thread, split,
               [&](int n) { return Product::total(n, [&](int i) { return memory.sums[i][memory.place(thread)]; }); });
}

/// Few-rows product by trellis strings: y [batch, rows] = epilogue(x w^T + bias). 256 threads.
/// Block (x, y) owns sequence x of up to 256 rows, and split y of the columns; warp w every eighth
/// string block of the split from the w-th on, with all rows. The warps' sums meet in shared
/// memory, those of the splits in device memory, always in the same order: the same bits on every
/// run.
template <int quarters, class Product>
__global__ void __launch_bounds__(few_rows_strings_threads, Product::tiles == 1 ? 2 : 1)
    few_rows_strings_kernel(FewRowsStrings p) {
  if (compiled_for_90())
    few_rows_strings_block<quarters, Product, few_rows_strings_stages<quarters, Product>(true)>(p);
  else
    few_rows_strings_block<quarters, Product, few_rows_strings_stages<quarters, Product>(false)>(p);
}

}  // namespace nibblenet
