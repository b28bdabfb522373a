#include "engine/quant/group_weights.h"

namespace nibblenet {
namespace {

/// Calls use(group, channel, k) for every weight in the order of the indices.
template <class Use>
void for_each_weight(int64_t channels, const GroupMap& map, std::span<const uint32_t> blocks, Use use) {
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t k = 0; k < map.channel_elements;) {
      const int64_t group =
          blocks.empty() ? map.group(channel, k) : blocks[static_cast<size_t>(channel * map.channel_elements + k)];
      for (const int64_t end = k + map.run(k); k < end; ++k) use(static_cast<size_t>(group), channel, k);
    }
}

}  // namespace

GroupedWeights::GroupedWeights(TensorView<const float> weights, const GroupMap& map, std::span<const uint32_t> blocks,
                               std::span<const float> importance)
    : begin_(static_cast<size_t>(map.groups) + 1), weights_(static_cast<size_t>(weights.elements())) {
  const int64_t channels = weights.size(0);
  for_each_weight(channels, map, blocks, [&](size_t group, int64_t, int64_t) { ++begin_[group + 1]; });
  for (size_t group = 1; group < begin_.size(); ++group) begin_[group] += begin_[group - 1];
  if (!importance.empty()) importance_.resize(weights_.size());

  std::vector<size_t> next(begin_.begin(), begin_.end() - 1);
  for_each_weight(channels, map, blocks, [&](size_t group, int64_t channel, int64_t k) {
    const size_t at = next[group]++;
    weights_[at] = weights[channel * map.channel_elements + k];
    if (!importance.empty()) importance_[at] = importance[static_cast<size_t>(k)];
  });
}

std::span<const float> GroupedWeights::part(const std::vector<float>& values, int64_t group) const {
  if (values.empty()) return {};
  const size_t begin = begin_[static_cast<size_t>(group)];
  return {values.data() + begin, begin_[static_cast<size_t>(group) + 1] - begin};
}

}  // namespace nibblenet
