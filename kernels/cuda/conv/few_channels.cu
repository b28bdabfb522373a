#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cuda/conv/few_channels.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/operands.cuh"

namespace nibblenet {
namespace {

constexpr int banks = 32;
static_assert(sizeof(CodeValues) == 1024, "as few_channels_fit.cpp counts it");

/// Order of the pairs along k with few bank conflicts. A k-tile reads four pairs at a time, each
/// for eight neighbouring pixels. Greedy: takes a pair whose banks are still free, if there is one.
/// Among several it takes one from the bank with the most pairs left.
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
        return left == 0 ? size_t{0} : left + ((std::rotl(of_pixels, bank) & used) == 0 ? few_channels_most_pairs : 0);
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

template <int tiles, int fragments, bool pooling>
void start(OutputBands bands, const ForwardProduct& f, Stream& stream) {
  const ConvolutionSizes& s = bands.sizes;
  if (f.w.form() == WeightForm::packed) bands.code_stride = static_cast<int>(f.w.view().code_stride);
  if (bands.shared_bytes() > block_shared_bytes) bands.code_stride = 0;
  const bool whole_vectors = s.k % 8 == 0 && f.shape.y_alignment == 16;
  const int down = few_channels::filter_blocks(bands);
  const int across = std::min(bands.walks(), std::max(few_channels_most_blocks / down, 1));
  const Grid grid{dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), 32 * few_channels_warps,
                  static_cast<size_t>(bands.shared_bytes()), true};
  const PairSlots order = order_of_pairs(bands);
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  with_half_operands(f.y.fp16().data(), f,
                     [&]<class Weights>(const Weights& weights, const BiasEpilogue<f16*>& epilogue, float factor) {
                       launch("few_channels", work, grid, stream,
                              few_channels_kernel<Weights, tiles, fragments, pooling>,
                              FewChannels{bands, f.x.fp16().data(), epilogue, factor, order, whole_vectors}, weights);
                     });
}

}  // namespace

namespace cuda {

void few_channels_forward(const ForwardProduct& f, Workspace&, Stream& stream) {
  const auto plan = few_channels::plan_of(f.shape);
  expect_fit(plan.has_value(), "few_channels", f.shape);
  if (f.shape.pools())
    return plan->fragments == 4 ? start<7, 4, true>(plan->bands, f, stream) : start<7, 1, true>(plan->bands, f, stream);
  if (plan->fragments == 1) return start<4, 1, false>(plan->bands, f, stream);
  return plan->tiles == 7 ? start<7, 4, false>(plan->bands, f, stream) : start<4, 4, false>(plan->bands, f, stream);
}

}  // namespace cuda
}  // namespace nibblenet
