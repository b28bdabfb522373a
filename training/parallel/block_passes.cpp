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

/// Numbers [begin, end) of a layer's weights followed by its biases, without empty spans.
std::vector<std::span<float>> pieces_of(const StoredGradients& layer, IndexRange part) {
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
      workers_(plan.fast ? 1 : plan.threads, plan.fast ? plan.threads : 1) {
  blocks_at_once_ = largest_of(*plan_.ranks, workers_.count()) * plan_.ranks->size();
  for (size_t i = first_trained; i < network.layers().size(); ++i) {
    const LayerSpec& spec = network.layers()[i].spec;
    if (!spec.has_parameters()) continue;
    const auto weights = static_cast<size_t>(spec.weight.elements());
    places_[i] = {.begin = length_, .weights = weights, .length = weights + static_cast<size_t>(spec.weight[0])};
    places_[i].in_slice = slice_length_;
    length_ += places_[i].length;
    slice_length_ += static_cast<size_t>(own_part(i).size());
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
  slices_.emplace(0, IndexRange{}, slice_length_);
}

BlockPasses::~BlockPasses() = default;

size_t BlockPasses::peak_bytes() const { return workers_.peak_bytes() + sums_->peak_bytes() + slices_->peak_bytes(); }

IndexRange BlockPasses::part_of(size_t layer, int rank) const {
  const auto length = static_cast<int64_t>(places_[layer].length);
  return shares_parts() ? part_of_range(length, rank, plan_.ranks->size()) : IndexRange{0, length};
}

void BlockPasses::each_block(IndexRange own, const std::function<void(int, IndexRange)>& work) {
  workers_.run({0, (own.size() + plan_.block - 1) / plan_.block}, [&](int worker, int64_t piece) {
    const int64_t begin = own.begin + piece * plan_.block;
    work(worker, {begin, std::min(begin + plan_.block, own.end)});
  });
}

BatchScore BlockPasses::step(const BlockBatch& batch, const Loss& loss) {
  const IndexRange images = share().images(batch.images);
  BatchScore own;
  own.losses.resize(static_cast<size_t>(images.size()));
  std::vector<uint8_t> right(own.losses.size());
  const int64_t blocks = plan_.fast ? 1 : share().blocks_of(batch.images);
  sums_->begin(blocks, plan_.fast ? IndexRange{0, 1} : share().blocks(batch.images));
  if (total_.size() > 0) sums_->recycle(std::move(total_));
  const int64_t first = images.begin;
  each_block(images, [&](int number, IndexRange rows) {
    Worker& worker = (*passes_)[number];
    const int64_t begin = rows.begin, count = rows.size();
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
    sums_->add({0, plan_.fast ? 0 : begin / plan_.block}, std::move(gradients));
  });
  if (plan_.fast)
    add_up_fast(images.size() > 0);
  else
    add_up(blocks);
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

/// Leaves the order of summation to MPI. A rank without images has no gradients to add.
void BlockPasses::add_up_fast(bool has_own) {
  if (has_own) {
    total_ = std::move(sums_->take().front());
  } else {
    total_ = sums_->room();
    std::fill_n(total_.data(), length_, 0.0F);
  }
  plan_.ranks->add_up({total_.data(), length_});
}

/// No collective operation promises an order of summation. So the ranks exchange the sums of their
/// blocks, and each adds up its parts in the fixed tree.
void BlockPasses::add_up(int64_t blocks) {
  Ranks& ranks = *plan_.ranks;
  std::vector<TreeSum::Values> own = sums_->take();
  if (ranks.size() == 1) {
    total_ = std::move(own.front());
    return;
  }
  slices_->begin(blocks, {0, blocks});
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  std::vector<std::pair<TreeNode, TreeSum::Values>> parts;
  for (int other = 0; other < ranks.size(); ++other) {
    const std::vector<TreeNode> nodes = nodes_of(blocks, part_of_range(blocks, other, ranks.size()));
    for (size_t i = 0; i < nodes.size(); ++i) {
      parts.emplace_back(nodes[i], slices_->room());
      float* room = parts.back().second.data();
      for (size_t layer = 0; layer < places_.size(); ++layer) {
        const IndexRange part = own_part(layer);
        float* own_room = room + places_[layer].in_slice;
        if (part.size() == 0) continue;
        if (other == ranks.rank())
          std::copy_n(own[i].data() + places_[layer].begin + part.begin, part.size(), own_room);
        else
          received.push_back({other, bytes_of_floats(own_room, part.size())});
      }
    }
    if (other == ranks.rank()) continue;
    for (const TreeSum::Values& sum : own)
      for (size_t layer = 0; layer < places_.size(); ++layer)
        if (const IndexRange part = part_of(layer, other); part.size() > 0)
          sent.push_back({other, bytes_of_floats(sum.data() + places_[layer].begin + part.begin, part.size())});
  }
  ranks.exchange(sent, received);
  for (auto& [node, values] : parts) slices_->add(node, std::move(values));
  TreeSum::Values sum = std::move(slices_->take().front());
  total_ = own.empty() ? sums_->room() : std::move(own.front());
  for (size_t i = 1; i < own.size(); ++i) sums_->recycle(std::move(own[i]));
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    const IndexRange part = own_part(layer);
    std::copy_n(sum.data() + places_[layer].in_slice, part.size(), total_.data() + places_[layer].begin + part.begin);
  }
  slices_->recycle(std::move(sum));
}

void BlockPasses::gather_parts(const OfLayer& values) {
  if (!shares_parts()) return;
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    if (places_[layer].length == 0) continue;
    const StoredGradients whole = values(layer);
    for (int other = 0; other < plan_.ranks->size(); ++other) {
      if (other == plan_.ranks->rank()) continue;
      for (const std::span<float> piece : pieces_of(whole, own_part(layer)))
        sent.push_back({other, std::as_bytes(piece)});
      for (const std::span<float> piece : pieces_of(whole, part_of(layer, other)))
        received.push_back({other, std::as_writable_bytes(piece)});
    }
  }
  plan_.ranks->exchange(sent, received);
}

void BlockPasses::gather_gradients() {
  gather_parts([this](size_t layer) { return gradient(layer); });
}

void BlockPasses::collect_parts(const std::function<std::span<const float>(size_t)>& own, const OfLayer& all) {
  const bool first = plan_.ranks->rank() == 0;
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    if (places_[layer].length == 0) continue;
    std::span<const float> mine = own(layer);
    // In the pieces in which they arrive.
    const auto weights = std::clamp<int64_t>(static_cast<int64_t>(places_[layer].weights) - own_part(layer).begin, 0,
                                             own_part(layer).size());
    const std::span<const float> pieces[] = {mine.first(static_cast<size_t>(weights)),
                                             mine.subspan(static_cast<size_t>(weights))};
    if (!first) {
      for (const std::span<const float> piece : pieces)
        if (!piece.empty()) sent.push_back({0, std::as_bytes(piece)});
      continue;
    }
    const StoredGradients whole = all(layer);
    for (const std::span<float> to : pieces_of(whole, own_part(layer))) {
      std::ranges::copy(mine.first(to.size()), to.begin());
      mine = mine.subspan(to.size());
    }
    for (int other = 1; other < plan_.ranks->size(); ++other)
      for (const std::span<float> piece : pieces_of(whole, part_of(layer, other)))
        received.push_back({other, std::as_writable_bytes(piece)});
  }
  plan_.ranks->exchange(sent, received);
}

StoredGradients BlockPasses::gradient_in(float* sums, size_t layer) const {
  const Shape& weight = network_.layers()[layer].spec.weight;
  float* begin = sums + places_[layer].begin;
  return {{begin, weight}, {begin + places_[layer].weights, {weight[0]}}};
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
    const int64_t whole = std::min(batch_size, dataset.size() - done);
    const IndexRange own = share().images(whole);
    each_block(own, [&](int worker, IndexRange rows) {
      const auto y = passes[worker].forward(ConstActivations(x.floats().slice(rows.begin - own.begin, rows.size())));
      std::ranges::copy(y.span(), outputs.data() + (done + rows.begin) * width);
    });
    done += whole;
  }
  gather_rows(*plan_.ranks, outputs, batch_size, share().block);
  if (on_progress) on_progress(done, dataset.size());
}

Tensor<float> BlockPasses::compute_features(const Dataset& dataset, const OnProgress& on_progress) {
  Tensor<float> features(network_.backend(), {dataset.size(), network_.feature_count()}, MemoryCategory::features);
  feed(nullptr, network_.classifier_begin(), dataset, features.view(), on_progress);
  return features;
}

void BlockPasses::attend(Network& teacher) {
  teachers_ = std::make_unique<PerWorker<Network>>(
      workers_, [&](int worker) { return std::make_unique<Network>(view_of(teacher, workers_.backend(worker))); });
}

std::vector<float> BlockPasses::predictions_of_teacher(ConstActivations x) {
  if (!teacher_passes_)
    teacher_passes_ = std::make_unique<PerWorker<Pass>>(workers_, [&](int worker) {
      Network& teacher = (*teachers_)[worker];
      return std::make_unique<Pass>(teacher, 0, teacher.layers().size(),
                                    Shape{plan_.block, preprocess_.crop, preprocess_.crop, 3}, Pass::Mode::inference);
    });
  std::vector<float> logits(static_cast<size_t>(x.size(0) * network_.classes()));
  each_block({0, x.size(0)}, [&](int worker, IndexRange rows) {
    const auto y = (*teacher_passes_)[worker].forward(ConstActivations(x.floats().slice(rows.begin, rows.size())));
    std::ranges::copy(y.span(), logits.begin() + rows.begin * network_.classes());
  });
  return logits;
}

Tensor<float> BlockPasses::predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) {
  Tensor<float> logits(host_memory(), {dataset.size(), network_.classes()}, MemoryCategory::data);
  feed(teachers_.get(), (*teachers_)[0].layers().size(), dataset, logits.view(), on_progress);
  return logits;
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
  each_block(share().images(images), [&](int worker, IndexRange rows) {
    const auto y = passes[worker].forward(ConstActivations(features.slice(rows.begin, rows.size())));
    std::ranges::copy(y.span(), logits.view().slice(rows.begin, rows.size()).data());
  });
  gather_rows(*plan_.ranks, logits.view(), images, share().block);
  if (on_progress) on_progress(images, images);
  Evaluation result = scored(std::move(logits), {labels.begin(), labels.end()});
  result.seconds = watch.seconds();
  return result;
}

}  // namespace nibblenet
