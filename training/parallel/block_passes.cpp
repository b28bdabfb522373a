#include "training/parallel/block_passes.h"

#include <algorithm>
#include <cstring>

#include "engine/core/stopwatch.h"
#include "layers/cross_entropy.h"
#include "layers/network/image_feed.h"
#include "training/parallel/network_view.h"

namespace nibblenet {
namespace {

std::span<const std::byte> bytes_of_floats(const float* data, int64_t count) {
  return std::as_bytes(std::span(data, static_cast<size_t>(count)));
}
std::span<std::byte> bytes_of_floats(float* data, int64_t count) {
  return std::as_writable_bytes(std::span(data, static_cast<size_t>(count)));
}

/// The largest of the ranks' numbers.
int64_t largest_of(Ranks& ranks, int64_t mine) {
  for (const std::string& text : ranks.gather(std::to_string(mine))) mine = std::max<int64_t>(mine, std::stoll(text));
  return mine;
}

}  // namespace

/// What a worker's thread computes with.
struct BlockPasses::Worker {
  Worker(Network& network, CpuBackend& backend) : view(view_of(network, backend)) {}
  Network view;
  std::optional<Pass> frozen;
  std::optional<Pass> trained;
  Tensor<float> losses;
  Tensor<float> dlogits;
};

BlockPasses::BlockPasses(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess,
                         const BlockPlan& plan)
    : network_(network),
      preprocess_(preprocess),
      plan_(plan),
      first_trained_(first_trained),
      places_(network.layers().size()),
      workers_(plan.threads) {
  blocks_at_once_ = largest_of(*plan_.ranks, plan_.threads) * plan_.ranks->size();
  for (size_t i = first_trained; i < network.layers().size(); ++i) {
    const LayerSpec& spec = network.layers()[i].spec;
    if (!spec.has_parameters()) continue;
    places_[i] = {length_, length_ + static_cast<size_t>(spec.weight.elements())};
    length_ = places_[i].bias + static_cast<size_t>(spec.weight[0]);
  }
  const Shape images{plan_.block, preprocess.crop, preprocess.crop, 3};
  const Shape features{plan_.block, network.feature_count()};
  passes_ = std::make_unique<PerWorker<Worker>>(workers_, [&](int number) {
    CpuBackend& backend = workers_.backend(number);
    auto worker = std::make_unique<Worker>(network, backend);
    if (frozen) worker->frozen.emplace(worker->view, 0, first_trained, images, Pass::Mode::inference);
    worker->trained.emplace(worker->view, first_trained, network.layers().size(),
                            first_trained == 0 ? images : features, Pass::Mode::training);
    worker->losses = Tensor<float>(backend, {plan_.block}, MemoryCategory::data);
    worker->dlogits = Tensor<float>(backend, {plan_.block, network.classes()}, MemoryCategory::activations);
    return worker;
  });
  sums_.emplace(0, IndexRange{}, length_);
  const IndexRange slice = part_of_range(static_cast<int64_t>(length_), plan_.ranks->rank(), plan_.ranks->size());
  slices_.emplace(0, IndexRange{}, static_cast<size_t>(slice.size()));
}

BlockPasses::~BlockPasses() = default;

size_t BlockPasses::peak_bytes() const { return workers_.peak_bytes() + sums_->peak_bytes() + slices_->peak_bytes(); }

BatchScore BlockPasses::step(const BlockBatch& batch, const Loss& loss) {
  const IndexRange blocks = share().blocks(batch.images);
  BatchScore own;
  own.losses.resize(static_cast<size_t>(share().images(batch.images).size()));
  std::vector<uint8_t> right(own.losses.size());
  sums_->begin(share().blocks_of(batch.images), blocks);
  if (total_.size() > 0) sums_->recycle(std::move(total_));
  const int64_t first = share().images(batch.images).begin;
  workers_.run(blocks, [&](int number, int64_t block) {
    Worker& worker = (*passes_)[number];
    const int64_t begin = block * plan_.block, count = std::min(plan_.block, batch.images - begin);
    ConstActivations x = batch.x.floats().slice(begin - first, count);
    if (worker.frozen) x = worker.frozen->forward(x);
    DropoutPlan dropout = batch.dropout;
    dropout.first_image = begin;
    const TensorView<const float> logits = worker.trained->forward(x, dropout);
    const TensorView<float> losses = worker.losses.view().slice(0, count);
    const TensorView<float> dlogits = worker.dlogits.view().slice(0, count);
    loss(workers_.backend(number), losses, dlogits, logits, {begin - first, begin - first + count});
    std::ranges::copy(losses.span(), own.losses.begin() + (begin - first));
    for (int64_t i = 0; i < count; ++i) {
      const auto row = logits.slice(i, 1).span();
      const auto image = static_cast<size_t>(begin - first + i);
      right[image] = std::ranges::max_element(row) - row.begin() == batch.labels[image] ? 1 : 0;
    }
    TreeSum::Values gradients = sums_->room();
    worker.trained->backward(dlogits, [&](Layer& layer, const GradientSource& source) {
      GradientSource stored = source;
      const size_t index = static_cast<size_t>(&layer - worker.view.layers().data());
      stored.scratch = gradient_in(gradients.data(), index);
      stored.store();
    });
    sums_->add({0, block}, std::move(gradients));
  });
  add_up(share().blocks_of(batch.images));
  for (const uint8_t one : right) own.correct += one;
  if (plan_.ranks->size() > 1) own = all_of(own);
  return own;
}

/// Joins the scores of all ranks. Their images follow each other in the batch.
BatchScore BlockPasses::all_of(const BatchScore& own) {
  std::string bytes(sizeof(own.correct) + own.losses.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), &own.correct, sizeof(own.correct));
  if (!own.losses.empty())
    std::memcpy(bytes.data() + sizeof(own.correct), own.losses.data(), own.losses.size() * sizeof(float));
  BatchScore all;
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

/// No collective operation promises an order of summation. So the ranks exchange the sums of their
/// blocks: each adds up a slice of the parameters in the fixed tree, and all gather the slices.
void BlockPasses::add_up(int64_t blocks) {
  Ranks& ranks = *plan_.ranks;
  std::vector<TreeSum::Values> own = sums_->take();
  if (ranks.size() == 1) {
    total_ = std::move(own.front());
    return;
  }
  const auto slice_of = [&](int rank) { return part_of_range(static_cast<int64_t>(length_), rank, ranks.size()); };
  const IndexRange slice = slice_of(ranks.rank());
  slices_->begin(blocks, {0, blocks});
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  std::vector<std::pair<TreeNode, TreeSum::Values>> parts;
  for (int other = 0; other < ranks.size(); ++other) {
    const std::vector<TreeNode> nodes = nodes_of(blocks, part_of_range(blocks, other, ranks.size()));
    const IndexRange theirs = slice_of(other);
    if (other != ranks.rank())
      for (const TreeSum::Values& sum : own)
        sent.push_back({other, bytes_of_floats(std::as_const(sum).data() + theirs.begin, theirs.size())});
    for (size_t i = 0; i < nodes.size(); ++i) {
      parts.emplace_back(nodes[i], slices_->room());
      float* room = parts.back().second.data();
      if (other == ranks.rank())
        std::copy_n(own[i].data() + slice.begin, slice.size(), room);
      else
        received.push_back({other, bytes_of_floats(room, slice.size())});
    }
  }
  ranks.exchange(sent, received);
  for (auto& [node, values] : parts) slices_->add(node, std::move(values));
  TreeSum::Values sum = std::move(slices_->take().front());
  total_ = own.empty() ? sums_->room() : std::move(own.front());
  for (size_t i = 1; i < own.size(); ++i) sums_->recycle(std::move(own[i]));
  std::copy_n(sum.data(), slice.size(), total_.data() + slice.begin);
  slices_->recycle(std::move(sum));
  sent.clear();
  received.clear();
  for (int other = 0; other < ranks.size(); ++other) {
    if (other == ranks.rank()) continue;
    const IndexRange theirs = slice_of(other);
    sent.push_back({other, bytes_of_floats(std::as_const(total_).data() + slice.begin, slice.size())});
    received.push_back({other, bytes_of_floats(total_.data() + theirs.begin, theirs.size())});
  }
  ranks.exchange(sent, received);
}

StoredGradients BlockPasses::gradient_in(float* sums, size_t layer) const {
  const Shape& weight = network_.layers()[layer].spec.weight;
  return {{sums + places_[layer].weight, weight}, {sums + places_[layer].bias, {weight[0]}}};
}

StoredGradients BlockPasses::gradient(size_t layer) { return gradient_in(total_.data(), layer); }

void BlockPasses::parameters_changed() {
  for (int worker = 0; worker < workers_.count(); ++worker) refresh((*passes_)[worker].view, network_);
}

bool BlockPasses::asked_to_stop(const OnProgress& on_progress, int64_t done, int64_t total) {
  return plan_.ranks->any(on_progress && on_progress(done, total));
}

std::unique_ptr<PerWorker<Network>> BlockPasses::load(const StateDict* model) {
  if (model == nullptr) return nullptr;
  return std::make_unique<PerWorker<Network>>(
      workers_, [&](int worker) { return std::make_unique<Network>(workers_.backend(worker), copy_of(*model)); });
}

/// `rows` holds, of every `batch` rows, this rank's; the others' come to it.
void BlockPasses::gather_rows(TensorView<float> rows, int64_t batch) {
  const int ranks = plan_.ranks->size();
  if (ranks == 1) return;
  const int64_t images = rows.size(0), width = rows.shape().inner_elements();
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (int64_t begin = 0; begin < images; begin += batch) {
    const auto rows_of = [&](int rank) {
      const IndexRange own = BlockShare{plan_.block, rank, ranks}.images(std::min(batch, images - begin));
      return bytes_of_floats(rows.data() + (begin + own.begin) * width, own.size() * width);
    };
    for (int other = 0; other < ranks; ++other) {
      if (other == plan_.ranks->rank()) continue;
      sent.push_back({other, rows_of(plan_.ranks->rank())});
      received.push_back({other, rows_of(other)});
    }
  }
  plan_.ranks->exchange(sent, received);
}

void BlockPasses::feed(PerWorker<Network>* models, size_t end, const Dataset& dataset, TensorView<float> outputs,
                       const OnProgress& on_progress) {
  const int64_t width = outputs.shape().inner_elements();
  const Shape input{plan_.block, preprocess_.crop, preprocess_.crop, 3};
  PerWorker<Pass> passes(workers_, [&](int worker) {
    Network& network = models != nullptr ? (*models)[worker] : (*passes_)[worker].view;
    return std::make_unique<Pass>(network, 0, end, input, Pass::Mode::inference);
  });
  const int64_t batch_size = plan_.block * blocks_at_once_;
  ImageFeed images(network_.backend(), dataset, preprocess_, {.batch_size = batch_size, .share = share()},
                   Precision::float32);
  ConstActivations x;
  int64_t done = 0;
  for (Batch batch; images.next(batch, x);) {
    if (asked_to_stop(on_progress, done, dataset.size())) throw Interrupted("stopped; nothing was written");
    const int64_t whole = std::min(batch_size, dataset.size() - done), first = share().images(whole).begin;
    workers_.run(share().blocks(whole), [&](int worker, int64_t block) {
      const int64_t begin = block * plan_.block, count = std::min(plan_.block, whole - begin);
      const auto y = passes[worker].forward(ConstActivations(x.floats().slice(begin - first, count)));
      std::ranges::copy(y.span(), outputs.data() + (done + begin) * width);
    });
    done += whole;
  }
  gather_rows(outputs, batch_size);
  if (on_progress) on_progress(done, dataset.size());
}

Tensor<float> BlockPasses::compute_features(const Dataset& dataset, const OnProgress& on_progress) {
  Tensor<float> features(network_.backend(), {dataset.size(), network_.feature_count()}, MemoryCategory::features);
  feed(nullptr, network_.classifier_begin(), dataset, features.view(), on_progress);
  return features;
}

Evaluation BlockPasses::scored(Tensor<float> logits, std::vector<int32_t> labels) {
  Evaluation result;
  result.images = static_cast<int64_t>(labels.size());
  result.labels = std::move(labels);
  result.logits = std::move(logits);
  if (result.images == 0) return result;
  Tensor<float> losses(host_memory(), {result.images}, MemoryCategory::data);
  cross_entropy(network_.backend(), losses.view(), {}, std::as_const(result.logits).view(),
                {result.labels.data(), {result.images}});
  double sum = 0;
  for (const float loss : losses.view()) sum += static_cast<double>(loss);
  result.loss = sum / static_cast<double>(result.images);
  for (int64_t i = 0; i < result.images; ++i) result.correct += result.right(i) ? 1 : 0;
  return result;
}

Evaluation BlockPasses::evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) {
  const Stopwatch watch;
  const auto models = load(model);
  Tensor<float> logits(host_memory(), {dataset.size(), network_.classes()}, MemoryCategory::data);
  feed(models.get(), network_.layers().size(), dataset, logits.view(), on_progress);
  Evaluation result = scored(std::move(logits), checked_labels(dataset, network_.classes()));
  result.seconds = watch.seconds();
  return result;
}

Evaluation BlockPasses::evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                                          const StateDict* model, const OnProgress& on_progress) {
  const Stopwatch watch;
  const int64_t images = features.size(0);
  if (asked_to_stop(on_progress, 0, images)) throw Interrupted("stopped; nothing was written");
  const auto models = load(model);
  PerWorker<Pass> passes(workers_, [&](int worker) {
    Network& network = models ? (*models)[worker] : (*passes_)[worker].view;
    return std::make_unique<Pass>(network, network.classifier_begin(), network.layers().size(),
                                  Shape{plan_.block, features.size(1)}, Pass::Mode::inference);
  });
  Tensor<float> logits(host_memory(), {images, network_.classes()}, MemoryCategory::data);
  workers_.run(share().blocks(images), [&](int worker, int64_t block) {
    const int64_t begin = block * plan_.block, count = std::min(plan_.block, images - begin);
    const auto y = passes[worker].forward(ConstActivations(features.slice(begin, count)));
    std::ranges::copy(y.span(), logits.view().slice(begin, count).data());
  });
  gather_rows(logits.view(), images);
  if (on_progress) on_progress(images, images);
  Evaluation result = scored(std::move(logits), {labels.begin(), labels.end()});
  result.seconds = watch.seconds();
  return result;
}

}  // namespace nibblenet
