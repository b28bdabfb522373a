#include <algorithm>
#include <array>
#include <cmath>

#include "engine/io/safetensors.h"
#include "engine/io/training_state.h"
#include "training/epoch_json.h"

namespace nibblenet {

NLOHMANN_JSON_SERIALIZE_ENUM(Schedule, {{Schedule::constant, "constant"},
                                        {Schedule::cosine, "cosine"},
                                        {Schedule::warmup, "warmup"},
                                        {Schedule::warmup_cosine, "warmup-cosine"}})
NLOHMANN_JSON_SERIALIZE_ENUM(Learned, {{Learned::everything, "all"}, {Learned::scales, "scales"}})
NLOHMANN_JSON_SERIALIZE_ENUM(Precision, {{Precision::float32, "float32"}, {Precision::float16, "float16"}})
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LossScale, value, finite_steps, skipped)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PruningOptions, enabled, fraction, global, until, layers)

static void to_json(nlohmann::json& json, const RecipeOptions& options) {
  json = {{"ema", options.ema},
          {"label_smoothing", options.label_smoothing},
          {"mixup", options.mixing.mixup},
          {"cutmix", options.mixing.cutmix},
          {"bias_lr", options.bias_lr},
          {"whitened", options.whitened}};
}

static void from_json(const nlohmann::json& json, RecipeOptions& options) {
  json.at("ema").get_to(options.ema);
  json.at("label_smoothing").get_to(options.label_smoothing);
  json.at("mixup").get_to(options.mixing.mixup);
  json.at("cutmix").get_to(options.mixing.cutmix);
  json.at("bias_lr").get_to(options.bias_lr);
  json.at("whitened").get_to(options.whitened);
}

static void to_json(nlohmann::json& json, const DistillationOptions& options) {
  json = {{"weight", options.weight}, {"teacher", options.teacher}, {"fingerprint", options.fingerprint}};
  if (!options.key.empty()) json["key"] = options.key;
}

static void from_json(const nlohmann::json& json, DistillationOptions& options) {
  json.at("weight").get_to(options.weight);
  json.at("teacher").get_to(options.teacher);
  json.at("fingerprint").get_to(options.fingerprint);
  options.key = json.value("key", "");
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingOptions, freeze_features, epochs, batch_size, learning_rate, momentum,
                                   weight_decay, dropout, schedule, flip, shift, cut, precision, image_size, seed,
                                   train_limit, test_limit, validation, patience, pruning, distillation, learned,
                                   recipe, blocks)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingPosition, epoch, batch, step, loss_sum, correct, images, loss_scale,
                                   start_sparsity, history, best, tested)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingSource, data, fingerprint, device, threads)

namespace {

constexpr const char* options_key = "training_options";
constexpr const char* source_key = "training_source";
constexpr int64_t most_epochs = 1'000'000;  // steps of all of them can be counted

/// Keys that checkpoints of older programs do not have; they get the value of a new object.
constexpr std::array newer_keys = {"validation", "patience", "best", "tested", "recipe", "blocks"};

/// Throws FormatError for a value of `file` that reading has changed: a name that no enum has and
/// that became its first one, or a number that does not fit its type.
void expect_unchanged(const nlohmann::json& read, const nlohmann::json& file, std::string_view what) {
  if (!file.is_structured()) {
    // As text, because an unsigned integer equals the negative one of the same bits.
    const bool same = file.is_number_integer() && read.is_number_integer() ? read.dump() == file.dump() : read == file;
    if (!same) fail<FormatError>("{} cannot be read: {} is not what this program writes there", what, file.dump());
  } else if (file.type() == read.type()) {
    for (const auto& [key, value] : file.items())
      if (file.is_array())
        expect_unchanged(read.at(std::stoul(key)), value, what);
      else if (read.contains(key))
        expect_unchanged(read.at(key), value, what);
  }
}

template <class T>
T from_json(const std::string& text, std::string_view what) {
  try {
    nlohmann::json file = nlohmann::json::parse(text);
    const nlohmann::json defaults = T();
    for (const char* key : newer_keys)
      if (file.is_object() && defaults.contains(key) && !file.contains(key)) file[key] = defaults.at(key);
    T value = file.get<T>();
    expect_unchanged(value, file, what);
    return value;
  } catch (const nlohmann::json::exception& error) {
    fail<FormatError>("{} cannot be read: {}", what, error.what());
  }
}

/// Moves parameters over, each name behind the prefix.
void add_under(std::string_view prefix, StateDict& to, StateDict from) {
  for (Parameter& parameter : from.parameters) {
    parameter.name.insert(0, prefix);
    to.parameters.push_back(std::move(parameter));
  }
}

/// The float network that training in packed form goes on from: weights before rounding where there
/// are any, else dequantized. Leaves the rest in `masters`.
StateDict unrounded(const StateDict& packed, StateDict& masters) {
  StateDict parameters = dequantized(packed);
  for (Parameter& parameter : parameters.parameters) {
    Parameter* master = masters.find(parameter.name);
    if (master == nullptr) continue;
    expect_shape(master->shape(), parameter.shape(), "weights before rounding of " + parameter.name);
    parameter.value = std::move(master->values());
  }
  return parameters;
}

void expect_fraction(double fraction, std::string_view option) {
  if (!(fraction >= 0 && fraction < 1)) fail<UsageError>("{}: a fraction must lie in [0, 1)", option);
}

bool is_loss_scale(const LossScale& scale) {
  int exponent = 0;
  return scale.value >= 1 && scale.value <= LossScale::largest && std::frexp(scale.value, &exponent) == 0.5 &&
         scale.finite_steps >= 0 && scale.finite_steps < LossScale::patience && scale.skipped >= 0;
}

void expect(bool valid, std::string_view message) {
  if (!valid) throw UsageError(std::string(message));
}

}  // namespace

void validate(const TrainingOptions& options) {
  expect(options.epochs >= 1 && options.epochs <= most_epochs, "--epochs must lie in 1…1000000");
  expect(options.batch_size >= 1 && options.batch_size <= 65536, "--batch must lie in 1…65536");
  expect(options.learning_rate > 0 && options.learning_rate < 1e6, "--lr must be positive");
  expect(options.momentum >= 0 && options.momentum < 1, "--momentum must lie in [0, 1)");
  expect(options.weight_decay >= 0 && options.weight_decay < 1e6, "--weight-decay must be 0 or more");
  expect(options.dropout >= 0 && options.dropout < 1, "--dropout must lie in [0, 1)");
  expect(options.image_size >= 1 && options.image_size <= 4096, "--image-size must lie in 1…4096");
  expect_fraction(options.pruning.fraction, "--prune");
  for (const auto& [layer, fraction] : options.pruning.layers) expect_fraction(fraction, "--prune-layer " + layer);
  expect(options.pruning.until >= 0 && options.pruning.until <= 1, "--prune-until must lie in [0, 1]");
  expect(options.learned == Learned::everything || !options.pruning.enabled,
         "--learn scales keeps the codes: no --prune");
  expect(options.distillation.weight >= 0 && options.distillation.weight <= 1, "--distill-weight must lie in [0, 1]");
  expect(options.train_limit >= 0 && options.test_limit >= 0, "limits must be 0 (all) or more");
  expect(options.patience >= 0 && options.patience <= most_epochs, "--patience must lie in 0…1000000");
  expect(options.blocks >= 0 && options.blocks <= 65536, "--blocks must lie in 0…65536");
  expect(options.validation || options.patience == 0, "--patience needs --validation");
  expect(options.recipe.ema >= 0 && options.recipe.ema < 1, "--ema must lie in [0, 1)");
  expect(options.recipe.ema == 0 || options.learned == Learned::everything,
         "--ema averages float weights: not with --learn scales");
  expect(options.recipe.label_smoothing >= 0 && options.recipe.label_smoothing < 1,
         "--label-smoothing must lie in [0, 1)");
  for (const auto& [alpha, name] :
       {std::pair{options.recipe.mixing.mixup, "--mixup"}, {options.recipe.mixing.cutmix, "--cutmix"}})
    if (!(alpha >= 0 && alpha <= 1000)) fail<UsageError>("{} must lie in 0…1000", name);
  expect(options.recipe.bias_lr > 0 && options.recipe.bias_lr <= 1000, "--bias-lr must be positive, 1000 at most");
  expect(options.recipe.bias_lr == 1 || options.learned == Learned::everything,
         "--bias-lr is SGD's: not with --learn scales");
}

std::string to_json(const TrainingOptions& options) { return nlohmann::json(options).dump(); }

TrainingOptions training_options_from_json(const std::string& text) {
  auto options = from_json<TrainingOptions>(text, "the checkpoint's training options");
  try {
    validate(options);
  } catch (const UsageError& error) {
    fail<FormatError>("the checkpoint's training options are invalid: {}", error.what());
  }
  return options;
}

void Trainer::save_checkpoint(const std::filesystem::path& path) const {
  StateDict dict = parameters_.model(), masters, momenta;
  parameters_.save(masters, momenta);
  if (!collected_.parameters.empty()) momenta = copy_of(collected_);
  add_under(master_prefix, dict, std::move(masters));
  add_under(momentum_prefix, dict, std::move(momenta));
  if (average_) add_under(average_prefix, dict, average_->save());
  add_under(best_prefix, dict, copy_of(best_));
  dict.metadata[image_size_key] = std::to_string(options_.image_size);
  dict.metadata[options_key] = to_json(options_);
  dict.metadata[training_position_key] = nlohmann::json(position_).dump();
  // Names of folders may be any bytes; metadata is UTF-8.
  const auto text = [](const nlohmann::json& json) {
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  if (!source_.fingerprint.empty()) dict.metadata[source_key] = text(source_);
  if (static_cast<int64_t>(train_.classes.size()) == network_.classes())
    dict.metadata[class_names_key] = text(train_.classes);
  save_state_dict(path, dict);
}

void Trainer::restore(const Checkpoint& checkpoint) {
  const TrainingPosition& position = checkpoint.position;
  if (position.epoch > options_.epochs)
    fail<UsageError>("--epochs {}: the checkpoint has {} behind it; give more", options_.epochs, position.epoch);
  const bool in_range = position.epoch >= 0 && position.batch >= 0 && position.batch <= batches_ &&
                        position.step == position.epoch * batches_ + position.batch;
  if (!in_range || position.images != std::min(position.batch * options_.batch_size, train_.size()))
    fail<FormatError>(
        "the checkpoint's position (epoch {}, batch {}, step {}, {} images) does not fit {} batches an "
        "epoch: other data?",
        position.epoch, position.batch, position.step, position.images, batches_);
  if (position.correct < 0 || position.correct > position.images)
    fail<FormatError>("the checkpoint has {} of {} images right", position.correct, position.images);
  if (static_cast<int64_t>(position.history.size()) != position.epoch)
    fail<FormatError>("the checkpoint is at epoch {} but its history has {}", position.epoch, position.history.size());
  for (const double sparsity : position.start_sparsity)
    if (!(sparsity >= 0 && sparsity <= 1)) fail<FormatError>("the checkpoint has a layer of sparsity {}", sparsity);
  if (!is_loss_scale(position.loss_scale) || position.loss_scale.skipped > position.step)
    fail<FormatError>("the checkpoint's loss scale makes no sense");
  restore_best(checkpoint);
  if (average_)
    average_->restore(checkpoint.average);
  else if (!checkpoint.average.parameters.empty())
    throw FormatError("the checkpoint has moving averages that its options do not name");
  parameters_.restore(checkpoint.masters, checkpoint.momenta);
  position_ = position;
}

void Trainer::restore_best(const Checkpoint& checkpoint) {
  const TrainingPosition& position = checkpoint.position;
  const bool fits = std::ranges::all_of(position.history, [&](const EpochReport& epoch) {
    return epoch.validation.has_value() == options_.validation && std::isfinite(epoch.measured().accuracy) &&
           std::isfinite(epoch.measured().loss);
  });
  if (!fits) throw FormatError("the checkpoint's epochs were not measured on the images that its options name");
  const bool ended = options_.validation && position.epoch == options_.epochs;
  if (position.best < 0 || position.best > position.epoch || (position.best > 0 && !options_.validation) ||
      (ended && position.best == 0))
    fail<FormatError>("the checkpoint says that epoch {} of {} is its best", position.best, position.epoch);
  const StateDict& best = checkpoint.best;
  if (best.parameters.empty() != (position.best == 0))
    throw FormatError("the checkpoint's best weights are missing, or those of no epoch");
  if (position.best == 0) return;
  size_t expected = 0;
  for (const Layer& layer : network_.layers()) {
    if (!layer.spec.has_parameters()) continue;
    const Parameter& weight = best.at(layer.spec.name + ".weight");
    const Parameter& bias = best.at(layer.spec.name + ".bias");
    expect_shape(weight.shape(), layer.spec.weight, "best weights of " + layer.spec.name);
    expect_shape(bias.shape(), layer.bias.shape(), "best biases of " + layer.spec.name);
    if (bias.packed() || (weight.packed() && !parameters_.quantized()))
      fail<FormatError>("the checkpoint's best weights of {} are packed", layer.spec.name);
    expected += 2;
  }
  if (best.parameters.size() != expected)
    fail<FormatError>("the checkpoint has {} best parameters, not {}", best.parameters.size(), expected);
  best_ = copy_of(best);
}

bool is_of_finished_run(const std::filesystem::path& path) {
  const auto metadata = safetensors_metadata(path);
  const auto options = metadata.find(options_key), position = metadata.find(training_position_key);
  if (options == metadata.end() || position == metadata.end())
    fail<FormatError>("{} is not a checkpoint of a training run", path.string());
  const auto run = training_options_from_json(options->second);
  const auto at = from_json<TrainingPosition>(position->second, "the checkpoint's position");
  return is_trained(run, at) && (at.tested || !run.validation);
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  StateDict dict = load_state_dict(path);
  if (!dict.metadata.contains(options_key) || !dict.metadata.contains(training_position_key))
    fail<FormatError>("{} is not a checkpoint of a training run; to start from its weights use --init", path.string());
  Checkpoint checkpoint;
  checkpoint.options = training_options_from_json(dict.metadata[options_key]);
  checkpoint.position = from_json<TrainingPosition>(dict.metadata[training_position_key], "the checkpoint's position");
  if (const auto source = dict.metadata.find(source_key); source != dict.metadata.end())
    checkpoint.source = from_json<TrainingSource>(source->second, "what the checkpoint says of its images");
  checkpoint.momenta = take_from_under(momentum_prefix, dict);
  checkpoint.masters = take_from_under(master_prefix, dict);
  checkpoint.average = take_from_under(average_prefix, dict);
  checkpoint.best = take_from_under(best_prefix, dict);
  if (!dict.packed()) {
    checkpoint.parameters = std::move(dict);
    return checkpoint;
  }
  checkpoint.parameters = unrounded(dict, checkpoint.masters);
  checkpoint.packed = std::move(dict);
  return checkpoint;
}

}  // namespace nibblenet
