#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "kernels/cuda/convolution_sizes.cuh"
#include "kernels/cuda/first_convolution.cuh"
#include "kernels/cuda/half_operands.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"

namespace nibblenet {
namespace {

constexpr int banks = 32;

/// What every GPU from compute capability 8.0 on lets a block have, but for the look-up table.
constexpr int most_shared_bytes = (99 << 10) - static_cast<int>(sizeof(CodeValues));

/// Bands of at most `tiles` tiles: whole rows where one fits.
OutputBands bands_of(const ConvolutionSizes& s, bool aligned, int tiles, int most_rows) {
  OutputBands b{.sizes = s, .aligned = aligned};
  b.columns = std::min(s.q, tiles * 8);
  b.tiles_across = (b.columns + 7) / 8;
  b.rows = std::min({s.p, tiles / b.tiles_across, most_rows});
  b.down = (s.p + b.rows - 1) / b.rows;
  b.across = (s.q + b.columns - 1) / b.columns;
  b.height = (b.rows - 1) * s.stride + s.size;
  b.words = (s.size * s.c + 1) / 2;
  b.steps = (b.pairs() + pairs_of_step - 1) / pairs_of_step;
  const int before = aligned ? 7 : 0;
  b.pieces = (before + (b.columns - 1) * s.stride * s.c + b.words * 2 + 7) / 8;
  // Neighbouring rows begin in other banks.
  for (b.pitch = b.pieces * 4; b.pitch % banks < 8 || b.pitch % banks > 24;) b.pitch += 4;
  return b;
}

/// The largest that fits into shared memory; nothing where not even a row does.
std::optional<OutputBands> plan(const ConvolutionSizes& s, bool aligned, int tiles) {
  for (int rows = tiles; rows > 0; --rows)
    if (const OutputBands b = bands_of(s, aligned, tiles, rows); FirstShared::bytes(b) <= most_shared_bytes) return b;
  return std::nullopt;
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

/// Blocks that a GPU runs at once: two on each of its multiprocessors, whatever their number, nearly.
constexpr int most_blocks = 264;

template <int tiles, int threads>
void start(const OutputBands& bands, Activations y, TensorView<const f16> x, const WeightCuda& w, const float* bias,
           bool with_relu, const Work& work, Stream& stream) {
  const ConvolutionSizes& s = bands.sizes;
  const bool whole_pieces = s.k % 8 == 0 && reinterpret_cast<uintptr_t>(y.halves().data()) % 16 == 0;
  const auto filter_blocks = static_cast<unsigned>((s.k + filter_block - 1) / filter_block);
  const Grid grid{dim3(static_cast<unsigned>(std::min(bands.count(), most_blocks)), filter_blocks), threads,
                  static_cast<size_t>(FirstShared::bytes(bands)), true};
  const PairSlots order = order_of_pairs(bands);
  with_half_operands(y.halves().data(), w, bias, s, with_relu,
                     [&]<class Weights>(const Weights& weights, const BiasResult<f16*>& result, float factor) {
                       launch("first_convolution", work, grid, stream,
                              first_convolution_kernel<Weights, tiles, threads>,
                              FirstConvolution{bands, x.data(), result, factor, order, whole_pieces}, weights);
                     });
}

/// Whether windows begin at whole words and filters are short.
bool suits(Activations y, ConstActivations x, const WeightCuda& w, const ConvolutionSizes& s) {
  const int pairs = s.size * ((s.size * s.c + 1) / 2);
  return x.precision() == Precision::float16 && y.precision() == Precision::float16 && s.outputs() > 0 && s.k > 0 &&
         w.form() != WeightCuda::Form::float32 && w.layout() == CodeLayout::channels && s.stride * s.c % 2 == 0 &&
         pairs <= most_pairs;
}

}  // namespace

namespace cuda {

bool first_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                          Window window, Epilogue epilogue, Stream& stream) {
  const ConvolutionSizes s = sizes_of(x.shape(), y.shape(), window);
  if (!suits(y, x, w, s)) return false;
  const bool aligned =
      s.w * s.c % 8 == 0 && s.padding * s.c % 2 == 0 && reinterpret_cast<uintptr_t>(x.halves().data()) % 16 == 0;
  const Work work = work_of(s, static_cast<double>(w.resident().total()), static_cast<double>(sizeof(f16)));
  const auto try_to_start = [&]<int tiles, int threads>(int tiles_of_band, int blocks_wanted) {
    const auto bands = plan(s, aligned, tiles_of_band);
    if (!bands || bands->count() < blocks_wanted) return false;
    start<tiles, threads>(*bands, y, x.halves(), w, bias.data(), epilogue == Epilogue::relu, work, stream);
    return true;
  };
  // Few images: less for each block, so that all multiprocessors have something to do.
  constexpr int enough_blocks = 128;
  return try_to_start.template operator()<7, 128>(28, enough_blocks) ||
         try_to_start.template operator()<4, 128>(16, enough_blocks) || try_to_start.template operator()<1, 256>(4, 0);
}

}  // namespace cuda
}  // namespace nibblenet
