#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/weights/launchers.h"

namespace nibblenet {
namespace {

/// The range of a codebook's values.
struct Ends {
  float lowest;
  float highest;

  explicit Ends(const Codebook& codebook)
      : lowest(codebook.values[codebook.ordered_codes[0]]),
        highest(codebook.values[codebook.ordered_codes[static_cast<size_t>(codebook.count) - 1]]) {}
};

/// Code of a rounded weight: `master` itself where codes stay, else the code of the nearest value.
__device__ __forceinline__ uint8_t rounded_code(const Codebook& codebook, float master, float step, bool by_code) {
  return by_code ? static_cast<uint8_t>(master) : encode(codebook, master / step);
}

/// values = (nearest value to master / step) step. One thread per weight.
__global__ void round_weights_kernel(float* values, const float* master, const float* steps, GroupMap map,
                                     Codebook codebook, bool by_code, int64_t count) {
  for_each_index(count, [&](int64_t i) {
    const float step = steps[map.group(i / map.channel_elements, i % map.channel_elements)];
    const uint8_t code =
        step == 0.0F && !by_code ? codebook.zero_code : rounded_code(codebook, master[i], step, by_code);
    values[i] = reconstruct(codebook.values[code], 0.0F, step);
  });
}

/// Weights [begin, end) of a channel, which hold all weights of its group number `local`, and
/// perhaps others.
struct Stretch {
  int64_t begin;
  int64_t end;
};

/// Number of groups that one output channel has a part of.
__device__ __host__ __forceinline__ int64_t groups_of_channel(const GroupMap& map) {
  switch (map.kind) {
    case Granularity::Kind::row:
    case Granularity::Kind::block:
      return map.groups_per_channel;
    case Granularity::Kind::tile:
      return map.matrix ? map.tiles_across : map.groups_per_channel;
    default:
      return 1;
  }
}

__device__ __forceinline__ Stretch stretch_of(const GroupMap& map, int64_t local) {
  int64_t first = 0, length = map.channel_elements;
  if (map.kind == Granularity::Kind::row) length = map.last;
  if (map.kind == Granularity::Kind::block) length = map.block;
  if (map.kind == Granularity::Kind::tile) length = map.matrix ? map.tile_columns : map.plane;
  if (map.kind == Granularity::Kind::tile && !map.matrix)
    first = local / map.tiles_in_plane * map.plane;
  else if (length < map.channel_elements)
    first = local * length;
  return {first, first + length < map.channel_elements ? first + length : map.channel_elements};
}

/// Updates dweights in place; parts[K, L] = sums of dweights (value - x) over a channel's part of
/// its L groups (kernels/training.h). One warp per part; its lanes take turns. The sums are the
/// same on every run.
__global__ void round_weights_backward_kernel(float* dweights, float* parts, const float* master, const float* steps,
                                              GroupMap map, Codebook codebook, bool by_code, Ends ends,
                                              int64_t local_groups, int64_t count) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t part = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; part < count;
       part += warps) {
    const int64_t channel = part / local_groups;
    const Stretch stretch = stretch_of(map, part % local_groups);
    float sum = 0.0F;
    for (int64_t k = stretch.begin + lane; k < stretch.end; k += 32) {
      const int64_t group = map.group(channel, k);
      const bool shares_stretch = map.kind == Granularity::Kind::tile && !map.matrix;
      if (shares_stretch && group != part) continue;  // another tile of the same kernel plane
      const int64_t i = channel * map.channel_elements + k;
      const float step = steps[group];
      if (step == 0.0F) {
        dweights[i] = 0.0F;
        continue;
      }
      if (by_code) {
        sum += dweights[i] * codebook.values[static_cast<uint8_t>(master[i])];
        continue;
      }
      const float d = dweights[i], x = master[i] / step, towards_zero = d * step;
      const bool above = x > ends.highest, below = x < ends.lowest;
      sum += d * (codebook.values[encode(codebook, x)] - (above || below ? 0.0F : x));
      if ((above && towards_zero <= 0.0F) || (below && towards_zero >= 0.0F)) dweights[i] = 0.0F;
    }
    sum = warp_sum(sum);
    if (lane == 0) parts[part] = sum;
  }
}

/// dsteps[G] from parts[K, L]. Group g of a tiled matrix, or the only group, spans `channels`
/// output channels, from g / L times that many on. One warp per group.
__global__ void add_parts_kernel(float* dsteps, const float* parts, int64_t local_groups, int64_t channels,
                                 int64_t all_channels, int64_t groups) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; group < groups;
       group += warps) {
    const int64_t first = group / local_groups * channels;
    const int64_t end = first + channels < all_channels ? first + channels : all_channels;
    float sum = 0.0F;
    for (int64_t channel = first + lane; channel < end; channel += 32)
      sum += parts[channel * local_groups + group % local_groups];
    sum = warp_sum(sum);
    if (lane == 0) dsteps[group] = sum;
  }
}

constexpr int codes_at_once = 16;
constexpr unsigned most_value_blocks = 256;
constexpr int value_threads = 256;

/// Sums of each warp of a block.
struct WarpSums {
  float of[value_threads / 32][codes_at_once];
};

/// parts[blocks, 256] = sums of dweights step over a block's share of the weights, for the 16 codes
/// from 16 blockIdx.y on. A thread keeps 16 sums, warps add theirs up, and the block adds up its
/// warps.
__global__ void value_gradients_kernel(float* parts, const float* dweights, const float* master, const float* steps,
                                       GroupMap map, Codebook codebook, bool by_code, int64_t count) {
  WarpSums& warp_sums = shared<WarpSums>();
  float sums[codes_at_once] = {};
  const int first_code = static_cast<int>(blockIdx.y) * codes_at_once;
  for_each_index(count, [&](int64_t i) {
    const float step = steps[map.group(i / map.channel_elements, i % map.channel_elements)];
    if (step == 0.0F) return;
    const int code = static_cast<int>(rounded_code(codebook, master[i], step, by_code)) - first_code;
    const float gradient = dweights[i] * step;
#pragma unroll
    for (int own = 0; own < codes_at_once; ++own) sums[own] += code == own ? gradient : 0.0F;
  });
#pragma unroll
  for (int own = 0; own < codes_at_once; ++own) {
    const float sum = warp_sum(sums[own]);
    if (threadIdx.x % 32 == 0) warp_sums.of[threadIdx.x / 32][own] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= codes_at_once) return;
  float total = 0.0F;
  for (int warp = 0; warp < value_threads / 32; ++warp) total += warp_sums.of[warp][threadIdx.x];
  parts[static_cast<int64_t>(blockIdx.x) * 256 + first_code + static_cast<int>(threadIdx.x)] = total;
}

/// dcodebook[256] = sums of parts[blocks, 256] over the blocks; 0 for codes beyond `codes`. One
/// thread per code.
__global__ void add_value_parts_kernel(float* dcodebook, const float* parts, int64_t blocks, int64_t codes) {
  for_each_index(256, [&](int64_t code) {
    float sum = 0.0F;
    for (int64_t block = 0; block < blocks && code < codes; ++block) sum += parts[block * 256 + code];
    dcodebook[code] = sum;
  });
}

Work sums_of(int64_t parts) { return {.bytes = 4.0 * static_cast<double>(parts)}; }

/// Gradient of the codebook. Must run before round_weights_backward_kernel, which overwrites
/// dL/dvalues.
void value_gradients(TensorView<float> dcodebook, TensorView<const float> dweights, TensorView<const float> master,
                     const RoundingRule& rule, Workspace& workspace, Stream& stream) {
  const int64_t codes = int64_t{1} << rule.codebook.bits;
  Grid grid = grid_for(master.elements(), value_threads);
  if (grid.blocks.x > most_value_blocks) grid.blocks.x = most_value_blocks;
  const int64_t blocks = grid.blocks.x;
  grid.blocks.y = static_cast<unsigned>(ceil_div(codes, codes_at_once));
  float* parts = workspace.floats(static_cast<size_t>(blocks) * 256);
  launch("value_gradients", moves({dweights, master}), grid, stream, value_gradients_kernel, parts, dweights.data(),
         master.data(), rule.steps.data(), rule.groups, rule.codebook, rule.by_code, master.elements());
  launch("add_value_parts", sums_of(blocks * codes), grid_for(256), stream, add_value_parts_kernel, dcodebook.data(),
         parts, blocks, codes);
}

}  // namespace

namespace cuda {

void round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule, Stream& stream) {
  launch("round_weights", moves({values, master}), grid_for(master.elements()), stream, round_weights_kernel,
         values.data(), master.data(), rule.steps.data(), rule.groups, rule.codebook, rule.by_code, master.elements());
}

void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                            TensorView<const float> master, const RoundingRule& rule, Workspace& workspace,
                            Stream& stream) {
  if (dcodebook.data() != nullptr) value_gradients(dcodebook, dweights, master, rule, workspace, stream);
  constexpr int64_t warps_of_block = 8;
  const int64_t channels = master.size(0), local_groups = groups_of_channel(rule.groups);
  const int64_t count = channels * local_groups;
  const bool spans_channels = rule.groups.channels_in_common() > 1;
  float* parts = spans_channels ? workspace.floats(static_cast<size_t>(count)) : dsteps.data();
  launch("round_weights_backward", moves({dweights, dweights, master}), grid_for(32 * count, 32 * warps_of_block),
         stream, round_weights_backward_kernel, dweights.data(), parts, master.data(), rule.steps.data(), rule.groups,
         rule.codebook, rule.by_code, Ends(rule.codebook), local_groups, count);
  if (!spans_channels) return;
  const int64_t common = rule.groups.channels_in_common() < channels ? rule.groups.channels_in_common() : channels;
  launch("add_parts", sums_of(count), grid_for(32 * rule.groups.groups, 32 * warps_of_block), stream, add_parts_kernel,
         dsteps.data(), parts, local_groups, common, channels, rule.groups.groups);
}

}  // namespace cuda
}  // namespace nibblenet
