#include "kernels/cuda/conv/few_channels_fit.h"

#include "kernels/cuda/device/target.h"

namespace nibblenet::few_channels {
namespace {

constexpr int banks = 32;

/// Template arguments of a kernel.
struct Tiling {
  int tiles;      ///< of a warp
  int fragments;  ///< of 16 filters
};

/// Fills in the input sizes that follow from a band's rows and columns.
OutputBands with_input(OutputBands b) {
  const ConvolutionSizes& s = b.sizes;
  b.height = (b.rows - 1) * s.stride + s.size;
  b.words = (b.run() + 1) / 2;
  b.k_tiles = ceil_div(b.pairs(), few_channels_k_tile_pairs);
  const int before = !b.aligned ? 0 : b.walks_w == 1 ? (-s.padding * s.c) & 7 : 7;
  b.vectors = ceil_div(before + (b.columns - 1) * s.stride * s.c + b.words * 2, 8);
  // Rows are padded so that neighbouring rows begin in different banks.
  for (b.pitch = b.vectors * 4; b.pitch % banks < 8 || b.pitch % banks > 24;) b.pitch += 4;
  return b;
}

/// Bands of an image for the kernel without pooling: whole rows where one fits.
OutputBands bands_of(const ConvolutionSizes& s, bool aligned, Tiling tiling, int most_rows) {
  const int tiles = few_channels_warps * tiling.tiles;
  OutputBands b{.sizes = s, .filters = 16 * tiling.fragments, .aligned = aligned};
  b.columns = std::min(s.q, tiles * 8);
  b.tiles_per_row = ceil_div(b.columns, 8);
  b.rows = std::min({s.p, tiles / b.tiles_per_row, most_rows});
  b.walk_rows = b.rows;
  b.walks_h = ceil_div(s.p, b.rows);
  b.walks_w = ceil_div(s.q, b.columns);
  return with_input(b);
}

/// Bands for the kernel with pooling: four rows, one per warp. A walk of w bands covers 2 w - 1
/// pooled rows.
OutputBands pooled_bands_of(const ConvolutionSizes& s, bool aligned, Tiling tiling, int walk) {
  OutputBands b{.sizes = s, .filters = 16 * tiling.fragments, .rows = few_channels_warps, .columns = s.q, .walk = walk};
  b.tiles_per_row = tiling.tiles;
  b.walk_rows = 2 * (2 * walk - 1);
  b.pooled_p = (s.p - 3) / 2 + 1;
  b.pooled_q = (s.q - 3) / 2 + 1;
  b.walks_h = ceil_div(b.pooled_p, 2 * walk - 1);
  b.walks_w = 1;
  b.aligned = aligned;
  return with_input(b);
}

bool fits_memory(const OutputBands& b) { return b.shared_bytes() <= block_shared_bytes; }

/// Whether the plan has enough blocks to fill the GPU; a smaller tiling gives more.
bool enough(const OutputBands& b) {
  constexpr int enough_blocks = 128;
  return b.walks() >= ceil_div(enough_blocks, filter_blocks(b));
}

/// The largest bands that fit into shared memory. Returns nothing where not even one row fits.
std::optional<OutputBands> plan(const ConvolutionSizes& s, bool aligned, Tiling tiling) {
  for (int rows = few_channels_warps * tiling.tiles; rows > 0; --rows)
    if (const OutputBands b = bands_of(s, aligned, tiling, rows); fits_memory(b)) return b;
  return std::nullopt;
}

/// The walk length with the least work for the busiest block. Short walks compute the rows between
/// two walks twice; long walks leave some blocks without work.
std::optional<OutputBands> pooled_plan(const ConvolutionSizes& s, bool aligned, Tiling tiling) {
  const auto bands_of_busiest = [](const OutputBands& b) {
    return ceil_div(b.walks(), std::max(few_channels_most_blocks / filter_blocks(b), 1)) * b.walk;
  };
  OutputBands best = pooled_bands_of(s, aligned, tiling, 1);
  for (int walk = 2; walk <= ceil_div(s.p, few_channels_warps); ++walk)
    if (const OutputBands b = pooled_bands_of(s, aligned, tiling, walk); bands_of_busiest(b) <= bands_of_busiest(best))
      best = b;
  return fits_memory(best) ? std::optional(best) : std::nullopt;
}

/// Requires windows that begin at 4-byte words, and short filters.
bool suits(const ProductCase& c) {
  const ConvolutionSizes& s = c.sizes;
  const int pairs = s.size * ceil_div(s.size * s.c, 2);
  return !c.linear && c.x == Precision::float16 && c.y == Precision::float16 && s.outputs() > 0 && s.k > 0 &&
         c.weight.form != WeightForm::float32 && c.weight.layout == WeightLayout::channels && s.stride * s.c % 2 == 0 &&
         pairs <= few_channels_most_pairs;
}

}  // namespace

std::optional<Plan> plan_of(const ProductCase& c) {
  const ConvolutionSizes& s = c.sizes;
  if (!suits(c)) return std::nullopt;
  // Whether rows can be copied 16 bytes at a time.
  const bool aligned = s.w * s.c % 8 == 0 && s.padding * s.c % 2 == 0 && c.x_alignment == 16;
  if (!c.pools()) {
    for (const Tiling tiling : {Tiling{7, 4}, Tiling{4, 4}})
      if (const auto bands = plan(s, aligned, tiling); bands && enough(*bands))
        return Plan{*bands, tiling.tiles, tiling.fragments};
    if (const auto bands = plan(s, aligned, {4, 1})) return Plan{*bands, 4, 1};
    return std::nullopt;
  }
  constexpr int tiles = 7;
  const Window& pool = c.pool.window;
  if (pool.size != 3 || pool.stride != 2 || pool.padding != 0 || c.pool.flat || s.p < 3) return std::nullopt;
  // One warp per row: for short rows, most of its work would be wasted.
  if (s.q <= 4 * tiles || s.q > 8 * tiles) return std::nullopt;
  if (enough(pooled_bands_of(s, aligned, {tiles, 4}, 1)))
    if (const auto bands = pooled_plan(s, aligned, {tiles, 4})) return Plan{*bands, tiles, 4};
  if (const auto bands = pooled_plan(s, aligned, {tiles, 1})) return Plan{*bands, tiles, 1};
  return std::nullopt;
}

bool fits_weight_gradient(const ProductCase& c) {
  const ConvolutionSizes& s = c.sizes;
  const FewChannelsRuns runs{s};
  const auto even = [&](int pixels) { return int64_t{pixels} * s.c % 2 == 0; };
  return c.x == Precision::float16 && c.y == Precision::float16 && s.k % 8 == 0 && s.outputs() > 0 &&
         c.y_alignment == 16 && c.x_alignment >= 4 && even(s.stride) && even(s.padding) && even(s.w) &&
         s.stride <= s.size && runs.tiles() <= few_channels_tiles * few_channels_gradient_warps &&
         runs.shared_bytes() <= block_shared_bytes;
}

}  // namespace nibblenet::few_channels
