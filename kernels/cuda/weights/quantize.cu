#include "engine/quant/bits.h"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/weights/launchers.h"

namespace nibblenet {
namespace {

// The atomic maxima below give the same bits on every run: a maximum does not depend on the order,
// and non-negative floats compare like their bits.

/// Key for the largest magnitude: its bits above the complement of its index. Of equal magnitudes
/// the first one wins.
__device__ __forceinline__ unsigned long long magnitude_key(float weight, int64_t index) {
  return static_cast<unsigned long long>(__float_as_uint(fabsf(weight))) << 32 |
         (0xFFFFFFFFULL - static_cast<unsigned long long>(index));
}

/// Extremes of a run of weights in one group, before they go to memory.
struct RunExtremes {
  unsigned long long below = 0;  ///< bits of -lowest
  unsigned long long above = 0;  ///< bits of highest
  unsigned long long largest = 0;

  __device__ void add(float weight, int64_t index) {
    const unsigned long long bits = __float_as_uint(fabsf(weight));
    if (weight < 0.0F && bits > below) below = bits;
    if (weight > 0.0F && bits > above) above = bits;
    const unsigned long long key = magnitude_key(weight, index);
    if (weight != 0.0F && key > largest) largest = key;
  }

  __device__ void flush(unsigned long long* keys, int64_t groups, int64_t group) const {
    if (below != 0) atomicMax(&keys[group], below);
    if (above != 0) atomicMax(&keys[groups + group], above);
    if (largest != 0) atomicMax(&keys[2 * groups + group], largest);
  }
};

constexpr int64_t run_length = 64;

/// keys[3, G] = maxima over each group; they start from zeros. A thread owns `run_length`
/// neighbours of one channel and writes whenever the group changes.
__global__ void find_extremes_kernel(unsigned long long* keys, const float* weights, GroupMap map,
                                     const uint32_t* blocks, int64_t runs_of_channel, int64_t runs) {
  for_each_index(runs, [&](int64_t run) {
    const int64_t channel = run / runs_of_channel;
    const int64_t first = run % runs_of_channel * run_length;
    const int64_t end = first + run_length < map.channel_elements ? first + run_length : map.channel_elements;
    RunExtremes extremes;
    int64_t group = -1;
    for (int64_t k = first; k < end; ++k) {
      const int64_t index = channel * map.channel_elements + k;
      const int64_t own = blocks != nullptr ? blocks[index] : map.group(channel, k);
      if (own != group && group >= 0) {
        extremes.flush(keys, map.groups, group);
        extremes = {};
      }
      group = own;
      extremes.add(weights[index], index);
    }
    extremes.flush(keys, map.groups, group);
  });
}

/// Same codes as the quantizer on the host. A group of zeros, or one whose step underflows, holds
/// exact zeros.
__device__ __forceinline__ uint32_t code_of(float weight, const Step& group, const Codebook& codebook, bool affine) {
  if (group.step == 0.0F) return codebook.zero_code;
  const float x = weight / group.step;
  if (!affine) return encode(codebook, x);
  return static_cast<uint32_t>(fminf(fmaxf(rintf(x) + group.zero_point, 0.0F), codebook.scale_to));
}

/// Encodes [K, channel_elements] weights. A thread owns eight neighbours of one channel: `bits`
/// whole bytes.
__global__ void encode_kernel(uint8_t* codes, int64_t stride, const float* weights, GroupMap map,
                              const uint32_t* blocks, const Step* steps, Codebook codebook, bool affine,
                              int64_t eights_of_channel, int64_t eights) {
  for_each_index(eights, [&](int64_t eight) {
    const int64_t channel = eight / eights_of_channel;
    const int64_t first = eight % eights_of_channel * 8;
    uint64_t fields = 0;
    for (int i = 0; i < 8 && first + i < map.channel_elements; ++i) {
      const int64_t index = channel * map.channel_elements + first + i;
      const int64_t group = blocks != nullptr ? blocks[index] : map.group(channel, first + i);
      const uint64_t code = code_of(weights[index], steps[group], codebook, affine);
      fields |= code << (i * codebook.bits);
    }
    uint8_t* to = codes + channel * stride + first / 8 * codebook.bits;
    for (int byte = 0; byte < codebook.bits && first / 8 * codebook.bits + byte < stride; ++byte)
      to[byte] = static_cast<uint8_t>(fields >> (8 * byte));
  });
}

}  // namespace

namespace cuda {

void find_extremes(uint64_t* keys, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
                   Stream& stream) {
  if (weights.elements() > int64_t{0xFFFFFFFF})
    fail<ShapeError>("{} weights are too many for the GPU's quantizer; use --device cpu", weights.elements());
  fill_zero(keys, 3 * static_cast<size_t>(map.groups) * sizeof(uint64_t), stream);
  const int64_t runs_of_channel = ceil_div(map.channel_elements, run_length);
  const int64_t runs = weights.size(0) * runs_of_channel;
  launch("find_extremes", {.bytes = 4.0 * static_cast<double>(weights.elements())}, grid_for(runs), stream,
         find_extremes_kernel, reinterpret_cast<unsigned long long*>(keys), weights.data(), map, blocks,
         runs_of_channel, runs);
}

std::vector<Extremes> extremes_from_keys(std::span<const uint64_t> keys, TensorView<const float> weights) {
  const size_t groups = keys.size() / 3;
  std::vector<Extremes> extremes(groups);
  const auto value = [](uint64_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits)); };
  for (size_t group = 0; group < groups; ++group) {
    extremes[group].lowest = 0.0F - value(keys[group]);
    extremes[group].highest = value(keys[groups + group]);
    const uint64_t largest = keys[2 * groups + group];
    if (largest != 0) extremes[group].largest = weights[static_cast<int64_t>(0xFFFFFFFFU - (largest & 0xFFFFFFFFU))];
  }
  return extremes;
}

void encode(TensorView<uint8_t> codes, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
            const Step* steps, const Codebook& codebook, bool affine, Stream& stream) {
  fill_zero(codes.data(), codes.span().size_bytes(), stream);
  const int64_t eights_of_channel = ceil_div(map.channel_elements, 8);
  const int64_t eights = weights.size(0) * eights_of_channel;
  const double bytes = 4.0 * static_cast<double>(weights.elements()) + static_cast<double>(codes.elements());
  launch("encode", {.bytes = bytes}, grid_for(eights), stream, encode_kernel, codes.data(), codes.size(1),
         weights.data(), map, blocks, steps, codebook, affine, eights_of_channel, eights);
}

}  // namespace cuda
}  // namespace nibblenet
