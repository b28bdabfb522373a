#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "kernels/cuda/conv/few_channels.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/operands.cuh"

namespace nibblenet {
namespace {

constexpr int banks = 32;

/// What every GPU from compute capability 8.0 on lets a block have, but for the look-up table.
constexpr int most_shared_bytes = (99 << 10) - static_cast<int>(sizeof(CodeValues));

constexpr int warps = first_convolution_warps;
/// Blocks that a GPU runs at once: two on each of its multiprocessors, whatever their number, nearly.
constexpr int most_blocks = 264;

/// What a kernel is compiled for.
struct Tiling {
  int tiles;      ///< of a warp
  int fragments;  ///< of 16 filters
};

int ceiling(int a, int b) { return (a + b - 1) / b; }

/// What follows from rows and columns of a band.
OutputBands with_input(OutputBands b) {
  const ConvolutionSizes& s = b.sizes;
  b.height = (b.rows - 1) * s.stride + s.size;
  b.words = (b.run() + 1) / 2;
  b.steps = ceiling(b.pairs(), pairs_of_step);
  const int before = !b.aligned ? 0 : b.across == 1 ? (-s.padding * s.c) & 7 : 7;
  b.pieces = ceiling(before + (b.columns - 1) * s.stride * s.c + b.words * 2, 8);
  // Neighbouring rows begin in other banks.
  for (b.pitch = b.pieces * 4; b.pitch % banks < 8 || b.pitch % banks > 24;) b.pitch += 4;
  return b;
}

/// Whole rows of an image where one fits.
OutputBands bands_of(const ConvolutionSizes& s, bool aligned, Tiling tiling, int most_rows) {
  const int tiles = warps * tiling.tiles;
  OutputBands b{.sizes = s, .filters = 16 * tiling.fragments, .aligned = aligned};
  b.columns = std::min(s.q, tiles * 8);
  b.tiles_across = ceiling(b.columns, 8);
  b.rows = std::min({s.p, tiles / b.tiles_across, most_rows});
  b.walk_rows = b.rows;
  b.down = ceiling(s.p, b.rows);
  b.across = ceiling(s.q, b.columns);
  return with_input(b);
}

/// Bands of four rows, one a warp. A walk of w of them has all that 2 w - 1 pooled rows need.
OutputBands pooled_bands_of(const ConvolutionSizes& s, bool aligned, Tiling tiling, int walk) {
  OutputBands b{.sizes = s, .filters = 16 * tiling.fragments, .rows = warps, .columns = s.q, .walk = walk};
  b.tiles_across = tiling.tiles;
  b.walk_rows = 2 * (2 * walk - 1);
  b.pooled_p = (s.p - 3) / 2 + 1;
  b.pooled_q = (s.q - 3) / 2 + 1;
  b.down = ceiling(b.pooled_p, 2 * walk - 1);
  b.across = 1;
  b.aligned = aligned;
  return with_input(b);
}

bool fits(const OutputBands& b) { return FirstShared::bytes(b) <= most_shared_bytes; }

int filter_blocks(const OutputBands& b) { return ceiling(b.sizes.k, b.filters); }

/// Few images are cut into smaller pieces, so that all multiprocessors have something to do.
bool enough(const OutputBands& b) {
  constexpr int enough_blocks = 128;
  return b.walks() >= ceiling(enough_blocks, filter_blocks(b));
}

/// The largest that fit into shared memory; nothing where not even a row does.
std::optional<OutputBands> plan(const ConvolutionSizes& s, bool aligned, Tiling tiling) {
  for (int rows = warps * tiling.tiles; rows > 0; --rows)
    if (const OutputBands b = bands_of(s, aligned, tiling, rows); fits(b)) return b;
  return std::nullopt;
}

/// Walks whose blocks are done first: rows between two walks are computed twice, and too few leave blocks without work.
std::optional<OutputBands> pooled_plan(const ConvolutionSizes& s, bool aligned, Tiling tiling) {
  const auto bands_of_busiest = [](const OutputBands& b) {
    return ceiling(b.walks(), std::max(most_blocks / filter_blocks(b), 1)) * b.walk;
  };
  OutputBands best = pooled_bands_of(s, aligned, tiling, 1);
  for (int walk = 2; walk <= ceiling(s.p, warps); ++walk)
    if (const OutputBands b = pooled_bands_of(s, aligned, tiling, walk); bands_of_busiest(b) <= bands_of_busiest(best))
      best = b;
  return fits(best) ? std::optional(best) : std::nullopt;
}

/// Pairs in an order in which four of them at a time, each read for eight neighbouring pixels, meet few banks twice:
/// always one whose banks are free, if there is one, of those with the most pairs left.
PairSlots order_of_pairs(const OutputBands& b) {
  uint32_t of_pixels = 0;
  for (int pixel = 0; pixel < 8; ++pixel) of_pixels |= 1U << (pixel * (b.sizes.stride * b.sizes.c / 2) % banks);
  std::array<std::vector<int>, banks> by_bank;
  for (int pair = 0; pair < b.pairs(); ++pair)
    by_bank[static_cast<size_t>((pair / b.words * b.pitch + pair % b.words) % banks)].push_back(pair);
  PairSlots order{};
  uint32_t used = 0;
  for (int slot = 0; slot < b.pairs(); ++slot) {
    if (slot % 4 == 0) used = 0;
    const auto better = [&](int one, int other) {
      const auto rank = [&](int bank) {
        const size_t left = by_bank[static_cast<size_t>(bank)].size();
        return left == 0 ? size_t{0} : left + ((std::rotl(of_pixels, bank) & used) == 0 ? most_pairs : 0);
      };
      return rank(one) > rank(other);
    };
    int best = 0;
    for (int bank = 1; bank < banks; ++bank)
      if (better(bank, best)) best = bank;
    used |= std::rotl(of_pixels, best);
    auto& pairs = by_bank[static_cast<size_t>(best)];
    order.slot[pairs.back()] = static_cast<uint8_t>(slot);
    pairs.pop_back();
  }
  return order;
}

/// Everything but how the output is cut.
struct Operands {
  Activations y;
  TensorView<const f16> x;
  const WeightCuda& w;
  const float* bias;
  bool with_relu;
};

template <int tiles, int fragments, bool pooling>
void start(const OutputBands& bands, const Operands& o, Stream& stream) {
  const ConvolutionSizes& s = bands.sizes;
  f16* y = o.y.halves().data();
  const bool whole_pieces = s.k % 8 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
  const int down = filter_blocks(bands);
  const int across = std::min(bands.walks(), std::max(most_blocks / down, 1));
  const Grid grid{dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), 32 * warps,
                  static_cast<size_t>(FirstShared::bytes(bands)), true};
  const PairSlots order = order_of_pairs(bands);
  const Work work = work_of(s, static_cast<double>(o.w.resident().total()), static_cast<double>(sizeof(f16)));
  with_half_operands(y, o.w, o.bias, s, o.with_relu,
                     [&]<class Weights>(const Weights& weights, const BiasResult<f16*>& result, float factor) {
                       launch("first_convolution", work, grid, stream,
                              first_convolution_kernel<Weights, tiles, fragments, pooling>,
                              FirstConvolution{bands, o.x.data(), result, factor, order, whole_pieces}, weights);
                     });
}

/// Whether windows begin at whole words and filters are short.
bool suits(Activations y, ConstActivations x, const WeightCuda& w, const ConvolutionSizes& s) {
  const int pairs = s.size * ((s.size * s.c + 1) / 2);
  return x.precision() == Precision::float16 && y.precision() == Precision::float16 && s.outputs() > 0 && s.k > 0 &&
         w.form() != WeightCuda::Form::float32 && w.layout() == WeightLayout::channels && s.stride * s.c % 2 == 0 &&
         pairs <= most_pairs;
}

/// Whether rows can be copied 16 bytes at a time.
bool is_aligned(ConstActivations x, const ConvolutionSizes& s) {
  return s.w * s.c % 8 == 0 && s.padding * s.c % 2 == 0 && reinterpret_cast<uintptr_t>(x.halves().data()) % 16 == 0;
}

}  // namespace

namespace cuda {

bool first_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                          Window window, Epilogue epilogue, Stream& stream) {
  const ConvolutionSizes s = sizes_of(x.shape(), y.shape(), window);
  if (!suits(y, x, w, s)) return false;
  const Operands operands{y, x.halves(), w, bias.data(), epilogue == Epilogue::relu};
  const bool aligned = is_aligned(x, s);
  if (const auto large = plan(s, aligned, {7, 4}); large && enough(*large))
    start<7, 4, false>(*large, operands, stream);
  else if (const auto middle = plan(s, aligned, {4, 4}); middle && enough(*middle))
    start<4, 4, false>(*middle, operands, stream);
  else if (const auto small = plan(s, aligned, {4, 1}))
    start<4, 1, false>(*small, operands, stream);
  else
    return false;
  return true;
}

bool first_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                     TensorView<const float> bias, Window window, Epilogue epilogue, Window pool,
                                     Stream& stream) {
  constexpr int tiles = 7;
  const Shape convolved = {x.size(0), window.output(x.size(1)), window.output(x.size(2)), w.shape()[0]};
  if (pool.size != 3 || pool.stride != 2 || pool.padding != 0 || convolved[1] < 3) return false;
  const ConvolutionSizes s = sizes_of(x.shape(), convolved, window);
  // A warp has a row; where it is a short one, most of the warp's work would be for nothing.
  if (!suits(y, x, w, s) || s.q <= 4 * tiles || s.q > 8 * tiles) return false;
  const Operands operands{y, x.halves(), w, bias.data(), epilogue == Epilogue::relu};
  const bool aligned = is_aligned(x, s);
  const bool many = enough(pooled_bands_of(s, aligned, {tiles, 4}, 1));
  if (const auto large = pooled_plan(s, aligned, {tiles, 4}); large && many)
    start<tiles, 4, true>(*large, operands, stream);
  else if (const auto small = pooled_plan(s, aligned, {tiles, 1}))
    start<tiles, 1, true>(*small, operands, stream);
  else
    return false;
  return true;
}

}  // namespace cuda
}  // namespace nibblenet
