#include "layers/network/evaluate.h"

#include <algorithm>
#include <cmath>

#include "engine/core/stopwatch.h"
#include "layers/cross_entropy.h"
#include "layers/network/image_feed.h"
#include "layers/network/pass.h"
#include "layers/softmax.h"

namespace nibblenet {
namespace {

/// Collects logits and losses batch by batch in the backend's memory: nothing waits for a batch
/// before finish().
class Scorer {
 public:
  Scorer(Network& network, std::vector<int32_t> labels)
      : backend_(network.backend()),
        images_(static_cast<int64_t>(labels.size())),
        device_labels_(backend_, {images_}, MemoryCategory::data),
        losses_(backend_, {images_}, MemoryCategory::data),
        logits_(backend_, {images_, network.classes()}, MemoryCategory::data) {
    result_.images = images_;
    result_.labels = std::move(labels);
    if (images_ > 0)
      backend_.copy_from_host(device_labels_.data(), result_.labels.data(), sizeof(int32_t) * result_.labels.size());
  }

  void add(TensorView<const float> logits, int64_t first) {
    const int64_t batch = logits.size(0);
    backend_.convert(logits_.view().slice(first, batch), logits);
    cross_entropy(backend_, losses_.view().slice(first, batch), {}, logits,
                  std::as_const(device_labels_).view().slice(first, batch));
  }

  /// Of batches that several ranks have added; `together` images of all before the next.
  Evaluation finish(Ranks* ranks = nullptr, int64_t together = 0, int64_t batch_size = 0) {
    result_.logits = backend_.read_back(std::as_const(logits_).view());
    if (images_ == 0) return std::move(result_);
    Tensor<float> losses = backend_.read_back(std::as_const(losses_).view());
    if (ranks != nullptr) {
      gather_rows(*ranks, result_.logits.view(), together, batch_size);
      gather_rows(*ranks, losses.view(), together, batch_size);
    }
    double loss_sum = 0;
    for (const float loss : losses.view()) loss_sum += static_cast<double>(loss);
    result_.loss = loss_sum / static_cast<double>(images_);
    for (int64_t i = 0; i < images_; ++i) result_.correct += result_.right(i) ? 1 : 0;
    return std::move(result_);
  }

 private:
  Backend& backend_;
  int64_t images_;
  Tensor<int32_t> device_labels_;  ///< [images]
  Tensor<float> losses_;           ///< [images]
  Tensor<float> logits_;           ///< [images, classes]
  Evaluation result_;
};

int64_t size_of_batch(const Dataset& dataset, int64_t batch_size) {
  return std::max<int64_t>(1, std::min(batch_size, dataset.size()));
}

/// Feeds every image through layers [0, end) and hands each batch's output to `use(output, first)`.
/// With `ranks`, this rank's batches.
template <class Use>
Evaluation run_all(Network& network, size_t end, const Dataset& dataset, const Preprocess& preprocess,
                   int64_t batch_size, const OnProgress& on_progress, Use use, bool mirror = false,
                   Ranks* ranks = nullptr) {
  batch_size = size_of_batch(dataset, batch_size);
  const BlockShare share = ranks != nullptr ? BlockShare{batch_size, ranks->rank(), ranks->size()} : BlockShare();
  const int64_t together = batch_size * share.ranks;
  const Shape input{batch_size, preprocess.crop, preprocess.crop, 3};
  Pass pass(network, 0, end, input, Pass::Mode::inference);
  const bool raw = network.folded();
  ImageFeed feed(network.backend(), dataset, preprocess,
                 {.batch_size = together, .mirror = mirror, .raw = raw, .share = share}, network.storage());
  Evaluation timing;
  const Stopwatch watch;
  int64_t done = 0;
  const auto run = [&](auto images) {  // prepared ones, or bytes
    for (Batch batch; feed.next(batch, images);) {
      const bool stop = on_progress && on_progress(done, dataset.size());
      if (ranks != nullptr ? ranks->any(stop) : stop) throw Interrupted("stopped; nothing was written");
      const int64_t whole = std::min(together, dataset.size() - done);
      if (batch.size() > 0) use(pass.forward(images), done + share.images(whole).begin);
      done += whole;
    }
  };
  if (raw)
    run(TensorView<const uint8_t>());
  else
    run(ConstActivations());
  network.backend().synchronize();
  timing.seconds = watch.seconds();
  timing.prepare_seconds = feed.loader().prepare_seconds();
  timing.wait_seconds = feed.loader().wait_seconds();
  if (on_progress) on_progress(done, dataset.size());
  return timing;
}

}  // namespace

int64_t Evaluation::predicted(int64_t image) const {
  const TensorView<const float> row = logits.view().slice(image, 1);
  return std::max_element(row.begin(), row.end()) - row.begin();
}

Discordant discordant(const Evaluation& first, const Evaluation& second) {
  Discordant counts;
  for (int64_t i = 0; i < first.images; ++i) {
    counts.first += first.right(i) && !second.right(i) ? 1 : 0;
    counts.second += second.right(i) && !first.right(i) ? 1 : 0;
  }
  return counts;
}

Evaluation mean_of(const Evaluation& first, const Evaluation& second) {
  expect_shape(second.logits.shape(), first.logits.shape(), "logits of the second evaluation");
  Evaluation mean{.images = first.images,
                  .logits = Tensor<float>(host_memory(), first.logits.shape(), MemoryCategory::data),
                  .labels = first.labels,
                  .seconds = first.seconds + second.seconds,
                  .prepare_seconds = first.prepare_seconds + second.prepare_seconds,
                  .wait_seconds = first.wait_seconds + second.wait_seconds};
  for (int64_t i = 0; i < mean.logits.elements(); ++i)
    mean.logits.data()[i] = 0.5F * (first.logits.data()[i] + second.logits.data()[i]);
  for (int64_t i = 0; i < mean.images; ++i) {
    const std::vector<double> p = softmax(std::as_const(mean.logits).view().slice(i, 1).span());
    mean.loss -= std::log(p[static_cast<size_t>(mean.labels[static_cast<size_t>(i)])]);
    mean.correct += mean.right(i) ? 1 : 0;
  }
  if (mean.images > 0) mean.loss /= static_cast<double>(mean.images);
  return mean;
}

std::vector<int32_t> checked_labels(const Dataset& dataset, int64_t classes) {
  std::vector<int32_t> labels(dataset.labels.begin(), dataset.labels.end());
  const auto largest = std::ranges::max_element(labels);
  if (largest != labels.end() && *largest >= classes)
    fail<UsageError>(
        "the data has a label {} but the network tells only {} classes apart; --reset tail makes a head that fits",
        *largest, classes);
  return labels;
}

Evaluation evaluate(Network& network, const Dataset& dataset, const Preprocess& preprocess, int64_t batch_size,
                    const OnProgress& on_progress, bool mirror, Ranks* ranks) {
  Scorer scorer(network, checked_labels(dataset, network.classes()));
  const Evaluation timing = run_all(
      network, network.layers().size(), dataset, preprocess, batch_size, on_progress,
      [&](TensorView<const float> logits, int64_t first) { scorer.add(logits, first); }, mirror, ranks);
  const int64_t batch = size_of_batch(dataset, batch_size);
  Evaluation result = scorer.finish(ranks, ranks != nullptr ? batch * ranks->size() : batch, batch);
  result.seconds = timing.seconds;
  result.prepare_seconds = timing.prepare_seconds;
  result.wait_seconds = timing.wait_seconds;
  return result;
}

Evaluation evaluate_features(Network& network, TensorView<const float> features, std::span<const int32_t> labels,
                             int64_t batch_size, const OnProgress& on_progress) {
  const int64_t images = features.size(0);
  batch_size = std::max<int64_t>(1, std::min(batch_size, images));
  Scorer scorer(network, {labels.begin(), labels.end()});
  Pass pass(network, network.classifier_begin(), network.layers().size(), {batch_size, features.size(1)},
            Pass::Mode::inference);
  const Stopwatch watch;
  for (int64_t first = 0; first < images; first += batch_size) {
    report_progress(on_progress, first, images);
    scorer.add(pass.forward(features.slice(first, std::min(batch_size, images - first))), first);
  }
  Evaluation result = scorer.finish();
  result.seconds = watch.seconds();
  return result;
}

Tensor<float> compute_features(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                               int64_t batch_size, const OnProgress& on_progress, Ranks* ranks) {
  Backend& backend = network.backend();
  Tensor<float> features(backend, {dataset.size(), network.feature_count()}, MemoryCategory::features);
  run_all(
      network, network.classifier_begin(), dataset, preprocess, batch_size, on_progress,
      [&](TensorView<const float> output, int64_t first) {
        backend.convert(features.view().slice(first, output.size(0)), output);
      },
      false, ranks);
  if (ranks == nullptr || features.empty()) return features;
  const int64_t batch = size_of_batch(dataset, batch_size);
  Tensor<float> all = backend.read_back(std::as_const(features).view());
  gather_rows(*ranks, all.view(), batch * ranks->size(), batch);
  backend.copy_from_host(features.data(), all.data(), all.view().span().size_bytes());
  return features;
}

}  // namespace nibblenet
