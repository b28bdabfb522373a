#include "training/parallel/cpu_blocks.h"

#include <algorithm>
#include <atomic>

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
struct CpuBlocks::Worker {
  Worker(Network& network, CpuBackend& backend) : view(view_of(network, backend)) {}
  Network view;
  std::optional<Pass> frozen;
  std::optional<Pass> trained;
  Tensor<float> losses;
  Tensor<float> dlogits;
};

CpuBlocks::CpuBlocks(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess,
                     const BlockPlan& plan)
    : BlockPasses(network, first_trained, preprocess, plan),
      workers_(plan.fast ? 1 : plan.threads, plan.fast ? plan.threads : 1) {
  blocks_at_once_ = largest_of(*plan_.ranks, workers_.count()) * plan_.ranks->size();
  for (size_t layer = 0; layer < layers(); ++layer) {
    places_.push_back(length_);
    in_slice_.push_back(slice_length_);
    length_ += static_cast<size_t>(length_of(layer));
    slice_length_ += static_cast<size_t>(part_of(layer, plan_.ranks->rank()).size());
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

CpuBlocks::~CpuBlocks() = default;

size_t CpuBlocks::peak_bytes() const { return workers_.peak_bytes() + sums_->peak_bytes() + slices_->peak_bytes(); }

void CpuBlocks::each_block(IndexRange own, const std::function<void(int, IndexRange)>& work) {
  workers_.run({0, (own.size() + plan_.block - 1) / plan_.block}, [&](int worker, int64_t piece) {
    const int64_t begin = own.begin + piece * plan_.block;
    work(worker, {begin, std::min(begin + plan_.block, own.end)});
  });
}

BatchScore CpuBlocks::step(const BlockBatch& batch, const Loss& loss, const OnSums& on_sums) {
  const IndexRange images = share().images(batch.images);
  BatchScore own;
  own.losses.resize(static_cast<size_t>(images.size()));
  std::atomic<int64_t> correct = 0;
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
    correct += count_correct(logits.span(),
                             batch.labels.subspan(static_cast<size_t>(begin - first), static_cast<size_t>(count)));
    TreeSum::Values gradients = sums_->room();
    worker.trained->backward(dlogits, [&](Layer& layer, const GradientSource& source) {
      GradientSource stored = source;
      const size_t index = static_cast<size_t>(&layer - worker.view.layers().data());
      stored.scratch = gradients_in(gradients.data() + places_[index], index);
      stored.store();
    });
    sums_->add({0, plan_.fast ? 0 : begin / plan_.block}, std::move(gradients));
  });
  if (plan_.fast)
    add_up_fast(images.size() > 0);
  else
    add_up(blocks);
  for (size_t i = 0; i < batch.unavoidable.size(); ++i) own.losses[i] -= static_cast<float>(batch.unavoidable[i]);
  own.correct = correct;
  if (in_parts() && !plan_.separable)
    gather_parts([this](size_t layer) { return gradients_in(total_.data() + places_[layer], layer); });
  for (size_t layer = layers(); layer-- > 0;) {
    if (length_of(layer) == 0) continue;
    const IndexRange part = own_part(layer);
    on_sums(layer, {total_.data() + places_[layer] + part.begin, static_cast<size_t>(part.size())},
            network_.backend().training());
  }
  if (shares_parts())
    gather_parts([this](size_t layer) -> StoredGradients {
      Layer& of = network_.layers()[layer];
      return {of.weight->values(), of.bias.view()};
    });
  return all_of(own);
}

/// Leaves the order of summation to MPI. A rank without images has no gradients to add.
void CpuBlocks::add_up_fast(bool has_own) {
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
void CpuBlocks::add_up(int64_t blocks) {
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
      for (size_t layer = 0; layer < layers(); ++layer) {
        const IndexRange part = part_of(layer, ranks.rank());
        float* own_room = room + in_slice_[layer];
        if (part.size() == 0) continue;
        if (other == ranks.rank())
          std::copy_n(own[i].data() + places_[layer] + part.begin, part.size(), own_room);
        else
          received.push_back({other, bytes_of_floats(own_room, part.size())});
      }
    }
    if (other == ranks.rank()) continue;
    for (const TreeSum::Values& sum : own)
      for (size_t layer = 0; layer < layers(); ++layer)
        if (const IndexRange part = part_of(layer, other); part.size() > 0)
          sent.push_back({other, bytes_of_floats(sum.data() + places_[layer] + part.begin, part.size())});
  }
  ranks.exchange(sent, received);
  for (auto& [node, values] : parts) slices_->add(node, std::move(values));
  TreeSum::Values sum = std::move(slices_->take().front());
  total_ = own.empty() ? sums_->room() : std::move(own.front());
  for (size_t i = 1; i < own.size(); ++i) sums_->recycle(std::move(own[i]));
  for (size_t layer = 0; layer < layers(); ++layer) {
    const IndexRange part = part_of(layer, ranks.rank());
    std::copy_n(sum.data() + in_slice_[layer], part.size(), total_.data() + places_[layer] + part.begin);
  }
  slices_->recycle(std::move(sum));
}

void CpuBlocks::gather_parts(const OfLayer& values) {
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (size_t layer = 0; layer < layers(); ++layer) {
    if (length_of(layer) == 0) continue;
    const StoredGradients whole = values(layer);
    for (int other = 0; other < plan_.ranks->size(); ++other) {
      if (other == plan_.ranks->rank()) continue;
      for (const std::span<float> piece : pieces_of(whole, part_of(layer, plan_.ranks->rank())))
        sent.push_back({other, std::as_bytes(piece)});
      for (const std::span<float> piece : pieces_of(whole, part_of(layer, other)))
        received.push_back({other, std::as_writable_bytes(piece)});
    }
  }
  plan_.ranks->exchange(sent, received);
}

void CpuBlocks::parameters_changed() {
  for (int worker = 0; worker < workers_.count(); ++worker) refresh((*passes_)[worker].view, network_);
}

std::unique_ptr<PerWorker<Network>> CpuBlocks::load(const StateDict* model) {
  if (model == nullptr) return nullptr;
  return std::make_unique<PerWorker<Network>>(
      workers_, [&](int worker) { return std::make_unique<Network>(workers_.backend(worker), copy_of(*model)); });
}

void CpuBlocks::feed(PerWorker<Network>* models, size_t end, const Dataset& dataset, TensorView<float> outputs,
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

Tensor<float> CpuBlocks::compute_features(const Dataset& dataset, const OnProgress& on_progress) {
  Tensor<float> features(network_.backend(), {dataset.size(), network_.feature_count()}, MemoryCategory::features);
  feed(nullptr, network_.classifier_begin(), dataset, features.view(), on_progress);
  return features;
}

void CpuBlocks::attend(Network& teacher) {
  teachers_ = std::make_unique<PerWorker<Network>>(
      workers_, [&](int worker) { return std::make_unique<Network>(view_of(teacher, workers_.backend(worker))); });
}

std::vector<float> CpuBlocks::predictions_of_teacher(ConstActivations x) {
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

Tensor<float> CpuBlocks::predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) {
  Tensor<float> logits(host_memory(), {dataset.size(), network_.classes()}, MemoryCategory::data);
  feed(teachers_.get(), (*teachers_)[0].layers().size(), dataset, logits.view(), on_progress);
  return logits;
}

Evaluation CpuBlocks::scored(Tensor<float> logits, std::vector<int32_t> labels) {
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

Evaluation CpuBlocks::evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) {
  const Stopwatch watch;
  const auto models = load(model);
  Tensor<float> logits(host_memory(), {dataset.size(), network_.classes()}, MemoryCategory::data);
  feed(models.get(), network_.layers().size(), dataset, logits.view(), on_progress);
  Evaluation result = scored(std::move(logits), checked_labels(dataset, network_.classes()));
  result.seconds = watch.seconds();
  return result;
}

Evaluation CpuBlocks::evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
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
