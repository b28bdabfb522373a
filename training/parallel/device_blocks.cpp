#include "training/parallel/device_blocks.h"

#include <algorithm>
#include <utility>

#include "training/host_copies.h"

namespace nibblenet {

DeviceBlocks::DeviceBlocks(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess,
                           const BlockPlan& plan)
    : BlockPasses(network, first_trained, preprocess, plan) {
  if (plan_.ranks->size() > 1 && plan_.exchange == nullptr) throw Error("ranks train on a device through an exchange");
  Backend& backend = network.backend();
  const Shape images{plan_.block, preprocess.crop, preprocess.crop, 3};
  const Shape features{plan_.block, network.feature_count()};
  if (frozen) frozen_.emplace(network, 0, first_trained, images, Pass::Mode::inference);
  trained_.emplace(network, first_trained, network.layers().size(), first_trained == 0 ? images : features,
                   Pass::Mode::training);
  losses_ = Tensor<float>(backend, {plan_.batch}, MemoryCategory::data);
  dlogits_ = Tensor<float>(backend, {plan_.block, network.classes()}, MemoryCategory::activations);
  const auto tree = [&](IndexRange part, ParameterSteps& by) {
    const auto add = [&by](float* to, const float* from, size_t count) {
      const Shape shape{static_cast<int64_t>(count)};
      by.add({to, shape}, {from, shape});
    };
    return std::make_unique<TreeSum>(0, IndexRange{}, static_cast<size_t>(part.size()), backend, add);
  };
  for (size_t layer = 0; layer < layers(); ++layer) {
    sums_.push_back(tree({0, length_of(layer)}, backend.training()));
    if (plan_.exchange != nullptr) parts_.push_back(tree(part_of(layer, plan_.ranks->rank()), *plan_.exchange));
  }
}

ConstActivations DeviceBlocks::block_of(ConstActivations x, IndexRange rows) {
  Backend& backend = network_.backend();
  const ConstActivations from = x.slice(rows.begin, rows.size());
  const size_t bytes = static_cast<size_t>(plan_.block * x.shape().inner_elements()) * bytes_of(x.precision());
  backend.grow(input_, bytes);
  const Activations copy(input_.data(), from.shape(), x.precision());
  backend.convert(copy, from);
  return copy;
}

BatchScore DeviceBlocks::step(const BlockBatch& batch, const Loss& loss, const OnSums& on_sums) {
  Backend& backend = network_.backend();
  const IndexRange images = share().images(batch.images);
  const int64_t blocks = plan_.fast ? 1 : share().blocks_of(batch.images);
  const IndexRange own = plan_.fast ? IndexRange{0, images.size() > 0 ? 1 : 0} : share().blocks(batch.images);
  for (const auto& sums : sums_) sums->begin(blocks, own);
  const auto classes = static_cast<size_t>(network_.classes());
  BatchScore score;
  score.losses.resize(static_cast<size_t>(images.size()));
  std::vector<float> logits_of_all(score.losses.size() * classes);
  HostCopies copies(backend);
  bool agreed = network_.storage() == Precision::float32;  // nothing overflows there
  const Pass::Agree agree = [&](bool finite) {
    agreed = true;
    return !plan_.ranks->any(!finite);
  };
  for (int64_t block = own.begin; block < own.end; ++block) {
    const int64_t begin = plan_.fast ? 0 : block * plan_.block - images.begin;
    const IndexRange rows{begin, std::min(begin + plan_.block, images.size())};
    ConstActivations x = block_of(batch.x, rows);
    if (frozen_) x = frozen_->forward(x);
    DropoutPlan dropout = batch.dropout;
    dropout.first_image = images.begin + begin;
    const TensorView<const float> logits = trained_->forward(x, dropout);
    const TensorView<float> losses = losses_.view().slice(begin, rows.size());
    const TensorView<float> dlogits = dlogits_.view().slice(0, rows.size());
    loss(backend, losses, dlogits, logits, rows);
    copies.queue(std::span(score.losses).subspan(static_cast<size_t>(begin), losses.span().size()), losses.data());
    copies.queue(std::span(logits_of_all).subspan(static_cast<size_t>(begin) * classes, logits.span().size()),
                 logits.data());
    if (!score.finite) continue;  // the step is skipped
    const bool last = block + 1 == own.end;
    const auto add = [&](Layer& layer, const GradientSource& source) {
      const size_t index = static_cast<size_t>(&layer - network_.layers().data());
      TreeSum::Values gradients = sums_[index]->room();
      GradientSource stored = source;
      stored.scratch = gradients_in(gradients.data(), index);
      stored.store();
      sums_[index]->add({0, block}, std::move(gradients));
      if (last) finish_layer(index, blocks, on_sums);
    };
    score.finite = trained_->backward(dlogits, add, batch.loss_scale, last ? agree : Pass::Agree());
  }
  if (!agreed) score.finite = agree(score.finite);
  if (score.finite && own.size() == 0)
    for (size_t layer = layers(); layer-- > 0;)
      if (length_of(layer) > 0) finish_layer(layer, blocks, on_sums);
  copies.finish();
  if (score.finite && plan_.exchange != nullptr) finish_exchange(on_sums);
  for (size_t i = 0; i < batch.unavoidable.size(); ++i) score.losses[i] -= static_cast<float>(batch.unavoidable[i]);
  score.correct = count_correct(logits_of_all, batch.labels);
  return all_of(score);
}

void DeviceBlocks::finish_layer(size_t layer, int64_t blocks, const OnSums& on_sums) {
  if (in_parts()) return finish_layer_in_parts(layer, blocks, on_sums);
  Backend& backend = network_.backend();
  std::vector<TreeSum::Values> own = sums_[layer]->take();
  TreeSum::Values total = own.empty() ? sums_[layer]->room() : std::move(own.front());
  if (own.empty()) {  // a rank without images
    const std::vector<float> zeros(total.size());
    backend.copy_from_host(total.data(), zeros.data(), total.bytes());
  }
  if (plan_.exchange == nullptr) {
    on_sums(layer, {total.data(), total.size()}, backend.training());
    return sums_[layer]->recycle(std::move(total));
  }
  plan_.exchange->follow_backend();
  plan_.exchange->add_up({total.data(), total.size()});
  whole_.push_back({layer, std::move(total)});
}

/// No collective operation promises an order of summation. So the ranks exchange the sums of their
/// blocks, and each adds up its part in the fixed tree.
void DeviceBlocks::finish_layer_in_parts(size_t layer, int64_t blocks, const OnSums& on_sums) {
  Exchange& exchange = *plan_.exchange;
  const int ranks = plan_.ranks->size();
  const auto size_of = [](IndexRange part) { return static_cast<size_t>(part.size()); };
  const IndexRange part = part_of(layer, plan_.ranks->rank());
  TreeSum& parts = *parts_[layer];
  std::vector<TreeSum::Values> own = sums_[layer]->take();
  parts.begin(blocks, {0, blocks});
  std::vector<Exchange::Sent> sent;
  std::vector<Exchange::Received> received;
  std::vector<std::pair<TreeNode, TreeSum::Values>> arriving;
  for (int other = 0; other < ranks; ++other) {
    for (const TreeNode& node : nodes_of(blocks, part_of_range(blocks, other, ranks))) {
      float* const room = arriving.emplace_back(node, parts.room()).second.data();
      if (part.size() > 0) received.push_back({other, {room, size_of(part)}});
    }
    if (const IndexRange theirs = part_of(layer, other); theirs.size() > 0)
      for (const TreeSum::Values& sum : own) sent.push_back({other, {sum.data() + theirs.begin, size_of(theirs)}});
  }
  exchange.follow_backend();
  exchange.exchange(sent, received);
  for (auto& [node, values] : arriving) parts.add(node, std::move(values));
  TreeSum::Values sum = std::move(parts.take().front());
  for (TreeSum::Values& values : own) spent_.push_back({layer, std::move(values)});
  if (plan_.separable) {
    on_sums(layer, {sum.data(), size_of(part)}, exchange);
    Layer& of = network_.layers()[layer];
    gather_values(layer, {of.weight->values(), of.bias.view()});
  } else {
    TreeSum::Values whole = sums_[layer]->room();
    sent.clear();
    received.clear();
    for (int other = 0; other < ranks; ++other) {
      if (part.size() > 0) sent.push_back({other, {sum.data(), size_of(part)}});
      if (const IndexRange theirs = part_of(layer, other); theirs.size() > 0)
        received.push_back({other, {whole.data() + theirs.begin, size_of(theirs)}});
    }
    exchange.exchange(sent, received);
    whole_.push_back({layer, std::move(whole)});
  }
  spent_parts_.push_back({layer, std::move(sum)});
}

void DeviceBlocks::gather_values(size_t layer, const StoredGradients& values) {
  std::vector<Exchange::Sent> sent;
  std::vector<Exchange::Received> received;
  for (int other = 0; other < plan_.ranks->size(); ++other) {
    if (other == plan_.ranks->rank()) continue;
    for (const std::span<float> piece : pieces_of(values, part_of(layer, plan_.ranks->rank())))
      sent.push_back({other, piece});
    for (const std::span<float> piece : pieces_of(values, part_of(layer, other))) received.push_back({other, piece});
  }
  plan_.exchange->exchange(sent, received);
}

void DeviceBlocks::finish_exchange(const OnSums& on_sums) {
  plan_.exchange->finish();
  for (Sum& sum : whole_) {
    on_sums(sum.layer, {sum.values.data(), sum.values.size()}, network_.backend().training());
    sums_[sum.layer]->recycle(std::move(sum.values));
  }
  for (Sum& sum : spent_) sums_[sum.layer]->recycle(std::move(sum.values));
  for (Sum& sum : spent_parts_) parts_[sum.layer]->recycle(std::move(sum.values));
  whole_.clear();
  spent_.clear();
  spent_parts_.clear();
}

Network& DeviceBlocks::evaluated(const StateDict* model, std::optional<Network>& room) const {
  if (model == nullptr) return network_;
  Backend& backend = network_.backend();
  return room.emplace(model->packed() ? Network(backend, copy_of(*model))
                                      : Network::for_training(backend, copy_of(*model), network_.precision()));
}

Evaluation DeviceBlocks::evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) {
  std::optional<Network> room;
  return nibblenet::evaluate(evaluated(model, room), dataset, preprocess_, plan_.batch, on_progress, false, several());
}

Tensor<float> DeviceBlocks::compute_features(const Dataset& dataset, const OnProgress& on_progress) {
  return nibblenet::compute_features(network_, dataset, preprocess_, plan_.batch, on_progress, several());
}

Evaluation DeviceBlocks::evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                                           const StateDict* model, const OnProgress& on_progress) {
  const int64_t images = features.size(0);
  if (asked_to_stop(on_progress, 0, images)) throw Interrupted("stopped; nothing was written");
  std::optional<Network> room;
  Evaluation result = nibblenet::evaluate_features(evaluated(model, room), features, labels, plan_.batch);
  if (on_progress) on_progress(images, images);
  return result;
}

std::vector<float> DeviceBlocks::predictions_of_teacher(ConstActivations x) {
  if (!teacher_pass_)
    teacher_pass_.emplace(*teacher_, 0, teacher_->layers().size(),
                          Shape{plan_.block, preprocess_.crop, preprocess_.crop, 3}, Pass::Mode::inference);
  std::vector<float> logits;
  for (int64_t begin = 0; begin < x.size(0); begin += plan_.block) {
    const ConstActivations some = block_of(x, {begin, std::min(begin + plan_.block, x.size(0))});
    const std::vector<float> own = network_.backend().to_host(teacher_pass_->forward(some));
    logits.insert(logits.end(), own.begin(), own.end());
  }
  return logits;
}

Tensor<float> DeviceBlocks::predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) {
  return std::move(
      nibblenet::evaluate(*teacher_, dataset, preprocess_, plan_.batch, on_progress, false, several()).logits);
}

}  // namespace nibblenet
