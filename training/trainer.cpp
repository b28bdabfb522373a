#include "training/trainer.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "engine/core/stopwatch.h"
#include "layers/cross_entropy.h"
#include "layers/network/image_feed.h"
#include "training/compression/calibration.h"
#include "training/host_copies.h"

namespace nibblenet {
namespace {

double fraction_of_zeros(const std::vector<LayerSparsity>& layers) {
  int64_t weights = 0, zeros = 0;
  for (const LayerSparsity& layer : layers) {
    weights += layer.weights;
    zeros += layer.zeros;
  }
  return weights == 0 ? 0.0 : static_cast<double>(zeros) / static_cast<double>(weights);
}

/// Whether a rank gives true, of two questions at once.
std::pair<bool, bool> any_of_both(Ranks& ranks, bool first, bool second) {
  std::pair<bool, bool> any{false, false};
  for (const std::string& answers : ranks.gather(std::string{first ? '1' : '0', second ? '1' : '0'})) {
    any.first = any.first || answers[0] == '1';
    any.second = any.second || answers[1] == '1';
  }
  return any;
}

}  // namespace

Trainer::Trainer(Network& network, const Dataset& train, const Dataset& test, const TrainingOptions& options,
                 const Dataset* validation)
    : network_(network),
      train_(train),
      test_(test),
      measured_(validation != nullptr ? *validation : test),
      options_(options),
      preprocess_(Preprocess::for_image_size(options.image_size)),
      parameters_(network, options.freeze_features ? network.classifier_begin() : 0, options.learned),
      train_labels_(checked_labels(train, network.classes())),
      measured_labels_(checked_labels(measured_, network.classes())) {
  validate(options_);
  if (options_.validation != (validation != nullptr))
    fail<Error>("validation images are {}", options_.validation ? "missing" : "there, but not asked for");
  checked_labels(test, network.classes());
  expect_image_size(network.spec(), options_.image_size);
  if (options_.precision != network.precision())
    fail<Error>("training in {} of a network in {}", to_string(options_.precision), to_string(network.precision()));
  options_.batch_size = std::min(options_.batch_size, train.size());
  batches_ = (train.size() + options_.batch_size - 1) / options_.batch_size;

  Backend& backend = network.backend();
  const size_t first_trained = options_.freeze_features ? network.classifier_begin() : 0;
  const int64_t batch = options_.batch_size;
  const Shape images{batch, preprocess_.crop, preprocess_.crop, 3};
  const Shape features{batch, network.feature_count()};
  if (options_.freeze_features) {
    if (augments(options_) && options_.blocks == 0)
      frozen_.emplace(network, 0, network.classifier_begin(), images, Pass::Mode::inference);
    gathered_ = Tensor<float>(backend, features, MemoryCategory::data);
  }
  if (options_.recipe.label_smoothing > 0 || options_.recipe.mixing.enabled())
    targets_.emplace(backend, batch, network.classes(), options_.recipe.label_smoothing);
  if (options_.recipe.ema > 0) average_.emplace(network, first_trained, options_.recipe.ema, options_.pruning.enabled);
  labels_ = Tensor<int32_t>(backend, {batch}, MemoryCategory::data);
  if (options_.blocks > 0) return;
  trained_.emplace(network, first_trained, network.layers().size(), options_.freeze_features ? features : images,
                   Pass::Mode::training);
  losses_ = Tensor<float>(backend, {batch}, MemoryCategory::data);
  dlogits_ = Tensor<float>(backend, {batch, network.classes()}, MemoryCategory::activations);
}

Tensor<float> Trainer::features_of(const Dataset& dataset, const OnProgress& on_progress) {
  if (blocks_) return blocks_->compute_features(dataset, on_progress);
  return compute_features(network_, dataset, preprocess_, options_.batch_size, on_progress);
}

void Trainer::prepare(const Callbacks& callbacks) {
  if ((options_.blocks > 0 || plan_) && !blocks_) {
    if (!plan_) throw Error("training by blocks needs by_blocks()");
    const bool frozen = options_.freeze_features && augments(options_);
    plan_->separable = parameters_.separable();
    blocks_ = make_block_passes(network_, options_.freeze_features ? network_.classifier_begin() : 0, frozen,
                                preprocess_, *plan_);
    if (teacher_) blocks_->attend(teacher_->network());
    if (blocks_->shares_parts()) parameters_.keep_parts([this](size_t layer) { return blocks_->own_part(layer); });
  }
  if (!options_.freeze_features || !train_features_.empty()) return;
  const int64_t predicted = teacher_ && !augments(options_) ? train_.size() : 0;
  const int64_t total = measured_.size() + (augments(options_) ? 0 : train_.size()) + predicted;
  const auto shifted = [&](int64_t before) {
    return [&callbacks, before, total](int64_t done, int64_t) {
      return callbacks.on_features && callbacks.on_features(before + done, total);
    };
  };
  if (measured_features_.empty()) measured_features_ = features_of(measured_, shifted(0));
  if (augments(options_)) return;
  if (teacher_ && !blocks_) teacher_->predict(train_, shifted(measured_.size()));
  if (teacher_ && blocks_ && !teacher_->has_predicted())
    teacher_->take_predictions(blocks_->predictions_of_teacher(train_, shifted(measured_.size())));
  train_features_ = features_of(train_, shifted(measured_.size() + predicted));
}

bool Trainer::run(const Callbacks& callbacks) {
  position_.tested = false;
  try {
    if (!is_trained(options_, position_) || options_.blocks > 0 || plan_) prepare(callbacks);
  } catch (const Interrupted&) {
    return false;
  }
  while (!is_trained(options_, position_)) {
    double seconds = 0;
    const int64_t images_before = position_.images;  // of an epoch that a checkpoint had begun
    if (!run_epoch(callbacks, seconds)) return false;
    expect_same_weights();
    Evaluation measured;
    try {
      measured = measure(callbacks.on_test);
    } catch (const Interrupted&) {
      return false;
    }
    ++position_.epoch;
    position_.history.push_back(report(measured, seconds, position_.images - images_before));
    position_.batch = 0;
    position_.loss_sum = 0;
    position_.correct = 0;
    position_.images = 0;
    keep_if_best();
    if (callbacks.on_epoch) callbacks.on_epoch(position_.history.back());
  }
  if (!options_.validation) return true;
  try {
    tested_ = test_best(callbacks.on_test);
  } catch (const Interrupted&) {
    return false;
  }
  position_.tested = true;
  return true;
}

EpochReport Trainer::report(const Evaluation& measured, double seconds, int64_t images) const {
  if (!std::isfinite(measured.loss))  // the last step's weights
    fail<Error>("the {} loss is no longer a number after epoch {}: lower --lr (now {})",
                options_.validation ? "validation" : "test", position_.epoch, options_.learning_rate);
  EpochReport report;
  report.epoch = position_.epoch;
  report.loss = position_.loss_sum / static_cast<double>(position_.images);
  report.train_accuracy = static_cast<double>(position_.correct) / static_cast<double>(position_.images);
  if (options_.validation) {
    report.validation = {.loss = measured.loss, .accuracy = measured.accuracy()};
  } else {
    report.test_loss = measured.loss;
    report.test_accuracy = measured.accuracy();
  }
  report.seconds = seconds;
  report.images_per_second = seconds > 0 ? static_cast<double>(images) / seconds : 0.0;
  if (options_.pruning.enabled) report.sparsity = fraction_of_zeros(parameters_.sparsity());
  return report;
}

bool Trainer::run_epoch(const Callbacks& callbacks, double& seconds) {
  Backend& backend = network_.backend();
  const Stopwatch watch;
  int64_t images = 0;
  BatchLabels labels;
  const auto after_step = [&](int64_t batch) {
    ++position_.batch;
    ++position_.step;
    images += batch;
    seconds = watch.seconds();
    bool stop = callbacks.on_step && callbacks.on_step(position_, batches_, static_cast<double>(images) / seconds);
    bool save = callbacks.save_due && callbacks.save_due();
    if (blocks_) std::tie(stop, save) = any_of_both(blocks_->ranks(), stop, save);
    if (save) {
      collect();
      callbacks.save();
    }
    return stop;
  };
  const auto labels_of = [&](std::span<const int64_t> indices) {
    labels.clear();
    for (const int64_t index : indices) labels.own.push_back(train_labels_[static_cast<size_t>(index)]);
  };

  if (!train_features_.empty()) {
    const std::vector<int64_t> order = epoch_order(train_.size(), true, options_.seed, position_.epoch);
    while (position_.batch < batches_) {
      const int64_t first = position_.batch * options_.batch_size;
      const int64_t batch = images_of_batch();
      const IndexRange own = blocks_ ? blocks_->share().images(batch) : IndexRange{0, batch};
      const std::span<const int64_t> rows(order.data() + first + own.begin, static_cast<size_t>(own.size()));
      const TensorView<float> x = gathered_.view().slice(0, own.size());
      prune_when_due();
      backend.training().gather_rows(x, std::as_const(train_features_).view(), rows);
      labels_of(rows);
      if (teacher_) teacher_->look_at(rows);
      if (blocks_)
        step_by_blocks(x, labels, batch);
      else
        step(x, labels);
      if (after_step(batch)) return false;
    }
    return true;
  }
  ImageFeed feed(backend, train_, preprocess_,
                 {.batch_size = options_.batch_size,
                  .flip = options_.flip,
                  .shift = options_.shift,
                  .cut = options_.cut,
                  .mixing = options_.recipe.mixing,
                  .shuffle = true,
                  .seed = options_.seed,
                  .epoch = position_.epoch,
                  .first_batch = position_.batch,
                  .share = blocks_ ? blocks_->share() : BlockShare{}},
                 network_.precision());
  ConstActivations x;
  const auto next = [&](Batch& batch) {
    if (position_.batch < batches_) prune_when_due();  // before the batch comes: Weight::changed()
    return feed.next(batch, x);
  };
  for (Batch batch; next(batch);) {
    labels_of(batch.indices);
    for (const int64_t index : batch.partners) labels.partners.push_back(train_labels_[static_cast<size_t>(index)]);
    labels.shares.assign(batch.shares.begin(), batch.shares.end());
    if (teacher_ && blocks_)
      teacher_->take_logits(blocks_->predictions_of_teacher(x));
    else if (teacher_)
      teacher_->look_at(x);
    const int64_t of_all_ranks = images_of_batch();
    if (blocks_)
      step_by_blocks(x, labels, of_all_ranks);
    else
      step(frozen_ ? frozen_->forward(x) : x, labels);
    if (after_step(of_all_ranks)) return false;
  }
  return true;
}

int64_t Trainer::images_of_batch() const {
  return std::min(options_.batch_size, train_.size() - position_.batch * options_.batch_size);
}

void Trainer::step_by_blocks(ConstActivations x, const BatchLabels& labels, int64_t images) {
  const float factor = 1.0F / static_cast<float>(images);
  SoftTargets soft;
  if (targets_)
    soft = targets_->of(labels, teacher_ ? &*teacher_ : nullptr);
  else
    network_.backend().copy_from_host(labels_.data(), labels.own.data(), labels.own.size() * sizeof(int32_t));
  const auto loss = [&](Backend& backend, TensorView<float> losses, TensorView<float> dlogits,
                        TensorView<const float> logits, IndexRange rows) {
    if (targets_)
      backend.training().soft_cross_entropy(losses, dlogits, logits, soft.distributions.slice(rows.begin, rows.size()),
                                            factor);
    else
      backend.cross_entropy(losses, dlogits, logits, std::as_const(labels_).view().slice(rows.begin, rows.size()),
                            factor);
  };
  const SgdParameters rates = sgd();
  const auto on_sums = [&](size_t index, std::span<float> sums, ParameterSteps& by) {
    Layer& layer = network_.layers()[index];
    if (blocks_->shares_parts()) return parameters_.update_part(layer, sums, rates, by);
    const Shape& weight = layer.spec.weight;
    const StoredGradients gradients{{sums.data(), weight}, {sums.data() + weight.elements(), {weight[0]}}};
    parameters_.update(layer, gradients, rates, position_.step + 1);
  };
  const bool fp16 = options_.precision == Precision::float16;
  const std::vector<int32_t> dominant = labels.dominant();
  const BatchScore score = blocks_->step({.x = x,
                                          .labels = dominant,
                                          .unavoidable = soft.entropies,
                                          .images = images,
                                          .dropout = {.probability = static_cast<float>(options_.dropout),
                                                      .seed = options_.seed,
                                                      .step = static_cast<uint64_t>(position_.step)},
                                          .loss_scale = static_cast<float>(fp16 ? position_.loss_scale.value : 1.0)},
                                         loss, on_sums);
  if (score.finite && blocks_->shares_parts()) parameters_.changed();
  blocks_->parameters_changed();
  if (fp16) position_.loss_scale.update(score.finite);
  if (average_) average_->update(position_.step + 1);
  position_.images += images;
  position_.correct += score.correct;
  for (const float one : score.losses) position_.loss_sum += static_cast<double>(one);
  expect_finite_loss();
}

void Trainer::step(ConstActivations x, const BatchLabels& labels) {
  const int64_t batch = x.size(0);
  const TensorView<const float> logits = trained_->forward(x, {.probability = static_cast<float>(options_.dropout),
                                                               .seed = options_.seed,
                                                               .step = static_cast<uint64_t>(position_.step)});
  const double unavoidable = measure_loss(logits, labels);
  std::vector<float> host_losses(static_cast<size_t>(batch));
  std::vector<float> host_logits(static_cast<size_t>(logits.elements()));
  HostCopies copies(network_.backend());
  copies.queue(host_losses, losses_.data());
  copies.queue(host_logits, logits.data());
  update(std::as_const(dlogits_).view().slice(0, batch));
  if (average_) average_->update(position_.step + 1);
  copies.finish();  // while the device still changes weights
  position_.images += batch;
  const auto classes = static_cast<size_t>(logits.size(1));
  for (size_t i = 0; i < host_losses.size(); ++i) {
    position_.loss_sum += static_cast<double>(host_losses[i]) - unavoidable;
    const auto row = std::span(host_logits).subspan(i * classes, classes);
    position_.correct += std::ranges::max_element(row) - row.begin() == labels.dominant(i) ? 1 : 0;
  }
  expect_finite_loss();
}

void Trainer::by_blocks(int threads, Ranks& ranks, Exchange* exchange) {
  plan_ = {.block = options_.blocks,
           .batch = options_.batch_size,
           .threads = threads,
           .ranks = &ranks,
           .exchange = exchange};
}

void Trainer::by_shares(int threads, Ranks& ranks, Exchange* exchange) {
  const int64_t largest = (options_.batch_size + ranks.size() - 1) / ranks.size();
  plan_ = {.block = largest,
           .batch = options_.batch_size,
           .threads = threads,
           .ranks = &ranks,
           .exchange = exchange,
           .fast = true};
  trained_.reset();
  frozen_.reset();
}

/// Each rank takes the whole step, so all need the same sums of gradients.
void Trainer::expect_same_weights() {
  if (!blocks_ || !plan_->fast) return;
  const std::vector<std::string> all = blocks_->ranks().gather(fingerprint_of(dequantized(parameters_.model())));
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      fail<Error>(
          "after epoch {} rank {} has other weights than rank 0: this MPI's AllReduce gives them different "
          "sums; leave --reduce fast out",
          position_.epoch + 1, rank);
}

void Trainer::collect() {
  if (!blocks_ || !blocks_->shares_parts()) return;
  collected_ = blocks_->ranks().rank() == 0 ? parameters_.room_for_momenta() : StateDict();
  blocks_->collect_parts([this](size_t layer) { return parameters_.momenta_of(layer); },
                         [this](size_t layer) { return parameters_.momenta_in(collected_, layer); });
}

void Trainer::expect_finite_loss() const {
  if (!(position_.loss_sum < 1e30))
    fail<Error>("the loss is no longer a number at step {}: lower --lr (now {})", position_.step,
                options_.learning_rate);
}

SgdParameters Trainer::sgd() const {
  const double factor = learning_rate_factor(options_.schedule, position_.step, options_.epochs * batches_);
  return {.learning_rate = static_cast<float>(options_.learning_rate * factor),
          .momentum = static_cast<float>(options_.momentum),
          .weight_decay = static_cast<float>(options_.weight_decay),
          .keep_zeros = options_.pruning.enabled,
          .bias_factor = static_cast<float>(options_.recipe.bias_lr)};
}

void Trainer::update(TensorView<const float> dlogits) {
  const SgdParameters rates = sgd();
  const auto on_weight_gradient = [&](Layer& layer, const GradientSource& gradient) {
    parameters_.update(layer, gradient, rates, position_.step + 1);
  };
  const bool fp16 = options_.precision == Precision::float16;
  const double scale = fp16 ? position_.loss_scale.value : 1.0;
  const bool finite = trained_->backward(dlogits, on_weight_gradient, static_cast<float>(scale));
  if (fp16) position_.loss_scale.update(finite);
}

double Trainer::measure_loss(TensorView<const float> logits, const BatchLabels& labels) {
  Backend& backend = network_.backend();
  const int64_t batch = logits.size(0);
  const TensorView<float> losses = losses_.view().slice(0, batch);
  const TensorView<float> dlogits = dlogits_.view().slice(0, batch);
  if (targets_) {
    const SoftTargets targets = targets_->of(labels, teacher_ ? &*teacher_ : nullptr);
    soft_cross_entropy(backend.training(), losses, dlogits, logits, targets.distributions);
    return targets.entropy;
  }
  backend.copy_from_host(labels_.data(), labels.own.data(), labels.own.size() * sizeof(int32_t));
  cross_entropy(backend, losses, dlogits, logits, std::as_const(labels_).view().slice(0, batch));
  return 0;
}

void Trainer::learn_from(Network& teacher) {
  teacher_.emplace(teacher, options_.distillation.weight, preprocess_, options_.batch_size);
  if (!targets_) targets_.emplace(network_.backend(), options_.batch_size, network_.classes(), 0.0);
}

void Trainer::quantize(StateDict packed) {
  if (average_) throw UsageError("--ema averages float weights: not with --quantize");
  parameters_.quantize(std::move(packed), options_.pruning.enabled);
}

void Trainer::prune_when_due() {
  const PruningSchedule schedule(options_.pruning.until, options_.epochs * batches_);
  if (!options_.pruning.enabled || !schedule.due(position_.step)) return;
  if (position_.start_sparsity.empty()) position_.start_sparsity = parameters_.pruned();
  parameters_.prune(options_.pruning, position_.start_sparsity, schedule.progress(position_.step));
  if (blocks_) blocks_->parameters_changed();
}

Evaluation Trainer::measure(const OnProgress& on_progress) {
  if (blocks_) {
    std::optional<StateDict> as_saved;
    if (parameters_.quantized() || average_) as_saved = current_model();
    const StateDict* model = as_saved ? &*as_saved : nullptr;
    if (measured_features_.empty()) return blocks_->evaluate(measured_, model, on_progress);
    return blocks_->evaluate_features(std::as_const(measured_features_).view(), measured_labels_, model, on_progress);
  }
  const auto evaluated = [&](Network& network) {
    if (!measured_features_.empty())
      return evaluate_features(network, std::as_const(measured_features_).view(), measured_labels_, options_.batch_size,
                               on_progress);
    return evaluate(network, measured_, preprocess_, options_.batch_size, on_progress);
  };
  if (!parameters_.quantized() && !average_) return evaluated(network_);
  Network as_saved = saved_network(current_model());
  return evaluated(as_saved);
}

StateDict Trainer::current_model() const {
  StateDict model = parameters_.model();
  return average_ ? average_->applied_to(std::move(model)) : std::move(model);
}

/// A network on the trainer's device that computes as training's tests do.
Network Trainer::saved_network(StateDict model) const {
  Backend& backend = network_.backend();
  return parameters_.quantized() ? Network(backend, std::move(model))
                                 : Network::for_training(backend, std::move(model), options_.precision);
}

bool is_trained(const TrainingOptions& options, const TrainingPosition& position) {
  const bool waits = options.validation && options.patience > 0 && position.best > 0;
  return position.epoch >= options.epochs || (waits && position.epoch - position.best >= options.patience);
}

void Trainer::keep_if_best() {
  const PruningSchedule pruning(options_.pruning.until, options_.epochs * batches_);
  const bool counts = !options_.pruning.enabled || pruning.over(position_.step);
  if (!options_.validation || !counts) return;
  if (position_.best > 0) {
    const EpochScore now = position_.history.back().measured();
    const EpochScore best = position_.history[static_cast<size_t>(position_.best) - 1].measured();
    if (now.accuracy < best.accuracy || (now.accuracy == best.accuracy && now.loss >= best.loss)) return;
  }
  best_ = current_model();
  position_.best = position_.epoch;
}

Evaluation Trainer::test_best(const OnProgress& on_progress) {
  if (blocks_) return blocks_->evaluate(test_, &best_, on_progress);
  Network best = saved_network(copy_of(best_));
  return evaluate(best, test_, preprocess_, options_.batch_size, on_progress);
}

std::vector<LayerSparsity> Trainer::sparsity() const {
  std::vector<LayerSparsity> layers = parameters_.sparsity();
  if (!best_.parameters.empty())
    for (LayerSparsity& layer : layers)
      layer.zeros = count_zeros(best_.at(layer.layer + ".weight").dequantized().view().span());
  return layers;
}

}  // namespace nibblenet
