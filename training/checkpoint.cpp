#include <nlohmann/json.hpp>

#include "training/trainer.h"

namespace nibblenet {

NLOHMANN_JSON_SERIALIZE_ENUM(Schedule, {{Schedule::constant, "constant"},
                                        {Schedule::cosine, "cosine"},
                                        {Schedule::warmup, "warmup"},
                                        {Schedule::warmup_cosine, "warmup-cosine"}})
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingOptions, freeze_features, epochs, batch_size, learning_rate, momentum,
                                   weight_decay, dropout, schedule, flip, image_size, seed, train_limit, test_limit)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EpochReport, epoch, loss, train_accuracy, test_loss, test_accuracy, seconds,
                                   images_per_second)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingPosition, epoch, batch, step, loss_sum, correct, images, history)

namespace {

constexpr const char* options_key = "training_options";
constexpr const char* position_key = "training_position";
constexpr std::string_view momentum_prefix = "momentum.";

template <class T>
T from_json(const std::string& text, std::string_view what) {
  try {
    return nlohmann::json::parse(text).get<T>();
  } catch (const nlohmann::json::exception& error) {
    fail<FormatError>("{} cannot be read: {}", what, error.what());
  }
}

void expect(bool valid, std::string_view message) {
  if (!valid) throw UsageError(std::string(message));
}

}  // namespace

void validate(const TrainingOptions& options) {
  expect(options.epochs >= 1, "--epochs must be 1 or more");
  expect(options.batch_size >= 1 && options.batch_size <= 65536, "--batch must lie in 1…65536");
  expect(options.learning_rate > 0 && options.learning_rate < 1e6, "--lr must be positive");
  expect(options.momentum >= 0 && options.momentum < 1, "--momentum must lie in [0, 1)");
  expect(options.weight_decay >= 0 && options.weight_decay < 1e6, "--weight-decay must be 0 or more");
  expect(options.dropout >= 0 && options.dropout < 1, "--dropout must lie in [0, 1)");
  if (options.image_size < smallest_image_size || options.image_size > 4096)
    fail<UsageError>("--image-size {}: must lie in {}…4096", options.image_size, smallest_image_size);
  expect(options.train_limit >= 0 && options.test_limit >= 0, "limits must be 0 (all) or more");
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
  StateDict dict = network_.state();
  const auto add = [&](std::string name, TensorView<const float> values) {
    Tensor<float> copy(host_memory(), values.shape(), MemoryCategory::data);
    network_.backend().copy_to_host(copy.data(), values.data(), values.span().size_bytes());
    Parameter parameter;
    parameter.name = std::string(momentum_prefix) + std::move(name);
    parameter.value = std::move(copy);
    dict.parameters.push_back(std::move(parameter));
  };
  for (size_t i = 0; i < momenta_.size(); ++i) {
    if (momenta_[i].weight.empty()) continue;
    add(network_.layers()[i].spec.name + ".weight", momenta_[i].weight.view());
    add(network_.layers()[i].spec.name + ".bias", momenta_[i].bias.view());
  }
  dict.metadata[image_size_key] = std::to_string(options_.image_size);
  dict.metadata[options_key] = to_json(options_);
  dict.metadata[position_key] = nlohmann::json(position_).dump();
  save_state_dict(path, dict);
}

void Trainer::restore(const StateDict& momenta, TrainingPosition position) {
  if (position.epoch < 0 || position.batch < 0 || position.batch > batches_ || position.step < 0)
    fail<FormatError>("the checkpoint's position (epoch {}, batch {}) does not fit {} batches an epoch: other data?",
                      position.epoch, position.batch, batches_);
  for (size_t i = 0; i < momenta_.size(); ++i) {
    if (momenta_[i].weight.empty()) continue;
    const auto load = [&](const std::string& name, Tensor<float>& target) {
      const Tensor<float>& source = momenta.at(name).values();
      expect_shape(source.shape(), target.shape(), "momentum of " + name);
      network_.backend().copy_from_host(target.data(), source.data(), source.view().span().size_bytes());
    };
    load(network_.layers()[i].spec.name + ".weight", momenta_[i].weight);
    load(network_.layers()[i].spec.name + ".bias", momenta_[i].bias);
  }
  position_ = std::move(position);
}

bool drop_momenta(StateDict& dict) {
  if (!dict.metadata.contains(position_key)) return false;
  std::erase_if(dict.parameters,
                [](const Parameter& parameter) { return parameter.name.starts_with(momentum_prefix); });
  dict.metadata.erase(position_key);
  return true;
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  StateDict dict = load_state_dict(path);
  if (!dict.metadata.contains(options_key) || !dict.metadata.contains(position_key))
    fail<FormatError>("{} is not a checkpoint of a training run; to start from its weights use --init", path.string());
  Checkpoint checkpoint;
  checkpoint.options = training_options_from_json(dict.metadata[options_key]);
  checkpoint.position = from_json<TrainingPosition>(dict.metadata[position_key], "the checkpoint's position");
  for (Parameter& parameter : dict.parameters) {
    const bool momentum = parameter.name.starts_with(momentum_prefix);
    if (momentum) parameter.name = parameter.name.substr(momentum_prefix.size());
    (momentum ? checkpoint.momenta : checkpoint.parameters).parameters.push_back(std::move(parameter));
  }
  return checkpoint;
}

}  // namespace nibblenet
