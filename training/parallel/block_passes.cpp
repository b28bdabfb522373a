#include "training/parallel/block_passes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "training/parallel/cpu_blocks.h"
#include "training/parallel/device_blocks.h"

namespace nibblenet {

BlockPasses::BlockPasses(Network& network, size_t first_trained, const Preprocess& preprocess, const BlockPlan& plan)
    : network_(network),
      preprocess_(preprocess),
      plan_(plan),
      first_trained_(first_trained),
      lengths_(network.layers().size()) {
  for (size_t i = first_trained; i < lengths_.size(); ++i)
    if (const LayerSpec& spec = network.layers()[i].spec; spec.has_parameters())
      lengths_[i] = spec.weight.elements() + spec.weight[0];
}

StoredGradients BlockPasses::gradients_in(float* sums, size_t layer) const {
  const Shape& weight = network_.layers()[layer].spec.weight;
  return {{sums, weight}, {sums + weight.elements(), {weight[0]}}};
}

std::vector<std::span<float>> BlockPasses::pieces_of(const StoredGradients& layer, IndexRange part) {
  std::vector<std::span<float>> pieces;
  int64_t before = 0;
  for (const std::span<float> values : {layer.dw.span(), layer.dbias.span()}) {
    const auto size = static_cast<int64_t>(values.size());
    const int64_t begin = std::clamp<int64_t>(part.begin - before, 0, size);
    const int64_t end = std::clamp<int64_t>(part.end - before, 0, size);
    if (begin < end) pieces.push_back(values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    before += size;
  }
  return pieces;
}

int64_t BlockPasses::count_correct(std::span<const float> logits, std::span<const int32_t> labels) {
  const size_t classes = labels.empty() ? 0 : logits.size() / labels.size();
  int64_t correct = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto row = logits.subspan(i * classes, classes);
    correct += std::ranges::max_element(row) - row.begin() == labels[i] ? 1 : 0;
  }
  return correct;
}

BatchScore BlockPasses::all_of(const BatchScore& own) const {
  if (plan_.ranks->size() == 1) return own;
  std::string bytes(sizeof(own.correct) + own.losses.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), &own.correct, sizeof(own.correct));
  if (!own.losses.empty())
    std::memcpy(bytes.data() + sizeof(own.correct), own.losses.data(), own.losses.size() * sizeof(float));
  BatchScore all{.finite = own.finite};
  for (const std::string& other : plan_.ranks->gather(bytes)) {
    int64_t correct = 0;
    std::memcpy(&correct, other.data(), sizeof(correct));
    all.correct += correct;
    const size_t before = all.losses.size(), count = (other.size() - sizeof(correct)) / sizeof(float);
    all.losses.resize(before + count);
    if (count > 0) std::memcpy(all.losses.data() + before, other.data() + sizeof(correct), count * sizeof(float));
  }
  return all;
}

bool BlockPasses::asked_to_stop(const OnProgress& on_progress, int64_t done, int64_t total) const {
  return plan_.ranks->any(on_progress && on_progress(done, total));
}

void BlockPasses::collect_parts(const std::function<std::vector<float>(size_t)>& own,
                                const std::function<StoredGradients(size_t)>& all) {
  struct Part {
    size_t layer;
    int rank;
    std::vector<float> values;
  };
  std::vector<Part> parts;
  for (size_t layer = 0; layer < layers(); ++layer) {
    if (length_of(layer) == 0) continue;
    parts.push_back({layer, plan_.ranks->rank(), own(layer)});
    for (int other = 1; plan_.ranks->rank() == 0 && other < plan_.ranks->size(); ++other)
      parts.push_back({layer, other, std::vector<float>(static_cast<size_t>(part_of(layer, other).size()))});
  }
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (Part& part : parts)
    if (plan_.ranks->rank() > 0)
      sent.push_back({0, std::as_bytes(std::span(part.values))});
    else if (part.rank > 0)
      received.push_back({part.rank, std::as_writable_bytes(std::span(part.values))});
  plan_.ranks->exchange(sent, received);
  if (plan_.ranks->rank() > 0) return;
  for (const Part& part : parts) {
    std::span<const float> values = part.values;
    for (const std::span<float> to : pieces_of(all(part.layer), part_of(part.layer, part.rank))) {
      std::ranges::copy(values.first(to.size()), to.begin());
      values = values.subspan(to.size());
    }
  }
}

std::unique_ptr<BlockPasses> make_block_passes(Network& network, size_t first_trained, bool frozen,
                                               const Preprocess& preprocess, const BlockPlan& plan) {
  const std::string device = network.backend().name();
  if (device == "cpu" && plan.exchange == nullptr)
    return std::make_unique<CpuBlocks>(network, first_trained, frozen, preprocess, plan);
  if (device == "cudnn") throw UsageError("--device cudnn: blocks and ranks train on cpu or cuda");
  return std::make_unique<DeviceBlocks>(network, first_trained, frozen, preprocess, plan);
}

}  // namespace nibblenet
