#include "training/compression/calibration.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "engine/core/random.h"
#include "engine/io/safetensors_header.h"
#include "layers/network/image_feed.h"
#include "layers/network/input_range.h"
#include "layers/network/pass.h"
#include "training/compression/fisher_diagonal.h"
#include "training/compression/range_meter.h"

namespace nibblenet {
namespace {

constexpr uint64_t position_stream = 0x706F7369'00000000ULL;  // "posi"

/// The inputs of one layer with parameters, batch by batch.
class LayerInputs {
 public:
  LayerInputs(const LayerSpec& spec, uint64_t number, const CalibrationOptions& options)
      : spec_(spec), number_(number), options_(options), sums_(spec.weight.inner_elements()) {}

  /// x[N, H, W, C] or [N, D] in host memory; `first` is the number of its first image.
  void add(TensorView<const float> x, int64_t first) {
    if (spec_.kind == LayerKind::linear) {
      sums_.add(x);
      return;
    }
    const int64_t outputs = spec_.window.output(x.size(1)) * spec_.window.output(x.size(2));
    const int64_t taken = std::min(options_.positions, outputs);
    const int64_t inputs = spec_.weight.inner_elements();
    rows_.resize(static_cast<size_t>(x.size(0) * taken * inputs));
#pragma omp parallel for
    for (int64_t image = 0; image < x.size(0); ++image) {
      const std::vector<int64_t> positions = drawn_positions(outputs, taken, first + image);
      for (int64_t i = 0; i < taken; ++i)
        gather(rows_.data() + (image * taken + i) * inputs, x, image, positions[static_cast<size_t>(i)]);
    }
    sums_.add({rows_.data(), {x.size(0) * taken, inputs}});
  }

  Hessian finish() { return std::move(sums_).finish(); }

 private:
  /// The first `taken` of a shuffle of all output positions.
  std::vector<int64_t> drawn_positions(int64_t outputs, int64_t taken, int64_t image) const {
    std::vector<int64_t> positions(static_cast<size_t>(outputs));
    std::iota(positions.begin(), positions.end(), int64_t{0});
    Random random(options_.seed, position_stream + (number_ << 40) + static_cast<uint64_t>(image));
    for (int64_t i = 0; i < taken; ++i) {
      const auto left = static_cast<uint64_t>(outputs - i);
      std::swap(positions[static_cast<size_t>(i)], positions[static_cast<size_t>(i) + random.below(left)]);
    }
    return positions;
  }

  /// The window in front of one output position, channel by channel as the weights lie; zeros
  /// outside of the image.
  void gather(float* row, TensorView<const float> x, int64_t image, int64_t position) const {
    const Window& window = spec_.window;
    const int64_t height = x.size(1), width = x.size(2), channels = x.size(3);
    const int64_t across = window.output(width);
    const int64_t taps = window.size * window.size;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t h = position / across * window.stride - window.padding + tap / window.size;
      const int64_t w = position % across * window.stride - window.padding + tap % window.size;
      const bool inside = h >= 0 && h < height && w >= 0 && w < width;
      const float* pixel = x.data() + ((image * height + h) * width + w) * channels;
      for (int64_t c = 0; c < channels; ++c) row[c * taps + tap] = inside ? pixel[c] : 0.0F;
    }
  }

  const LayerSpec& spec_;
  uint64_t number_;  ///< of the layer, for its random bits
  CalibrationOptions options_;
  HessianAccumulator sums_;
  std::vector<float> rows_;  ///< im2col, of a batch
};

/// The layers from one with parameters up to the next, and the inputs of the first of them.
struct Stage {
  std::string layer;
  size_t begin;
  LayerInputs inputs;
  RangeMeter range;
  std::optional<Pass> pass;  ///< none behind the last layer whose inputs are wanted
};

Shape input_shape_behind(const Network& network, size_t begin, size_t end, Shape shape) {
  for (size_t i = begin; i < end; ++i) shape = network.layers()[i].spec.output_shape(shape);
  return shape;
}

std::vector<Stage> make_stages(Network& network, Shape input, const CalibrationOptions& options) {
  std::vector<size_t> with_parameters;
  for (size_t i = 0; i < network.layers().size(); ++i)
    if (network.layers()[i].spec.has_parameters()) with_parameters.push_back(i);
  std::vector<Stage> stages;
  for (size_t number = 0; number < with_parameters.size(); ++number) {
    const size_t begin = with_parameters[number];
    const LayerSpec& spec = network.layers()[begin].spec;
    Stage stage{.layer = spec.name,
                .begin = begin,
                .inputs = LayerInputs(spec, number, options),
                .range = RangeMeter(options.range_images * input.inner_elements()),
                .pass = {}};
    if (number + 1 < with_parameters.size()) {
      const size_t end = with_parameters[number + 1];
      stage.pass.emplace(network, begin, end, input, Pass::Mode::inference);
      input = input_shape_behind(network, begin, end, input);
    }
    stages.push_back(std::move(stage));
  }
  return stages;
}

/// Adds the inputs x[N, …] of those of its images that are among `taken` of `all`, evenly spread.
/// `first` is the number of its first image.
void add_ranges(RangeMeter& range, TensorView<const float> x, int64_t first, int64_t all, int64_t taken) {
  for (int64_t i = 0; i < x.size(0); ++i)
    if (const int64_t image = first + i; image * taken / all != (image + 1) * taken / all)
      range.add(x.slice(i, 1).span());
}

template <class T>
T number_of(const std::map<std::string, std::string>& metadata, const char* key, const std::string& file) {
  const auto found = metadata.find(key);
  T value{};
  if (found != metadata.end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && std::cmp_greater_equal(value, 0)) return value;
  }
  fail<FormatError>("{}: the calibration's {} is missing or no number", file, key);
}

std::string text_of(const std::map<std::string, std::string>& metadata, const char* key, const std::string& file) {
  constexpr size_t longest = 1000;
  const auto found = metadata.find(key);
  if (found == metadata.end() || found->second.size() > longest)
    fail<FormatError>("{}: the calibration's {} is missing or too long", file, key);
  return found->second;
}

constexpr const char* calibration_format = "nibblenet-calibration";
constexpr const char* older_version = "2";          // without a checksum of the header
constexpr const char* outputs_suffix = ".outputs";  // of the tensor with the Fisher diagonal of a weight's outputs

/// Throws FormatError for what cannot be mean squares of `outputs` gradients.
std::vector<float> read_fisher(const SafetensorsFile& file, const std::string& name, const std::string& weight,
                               int64_t outputs) {
  const TensorEntry& entry = file.at(weight + outputs_suffix);
  std::vector<float> values;
  if (entry.dtype == DType::f32 && entry.bytes.size() / sizeof(float) == static_cast<size_t>(outputs)) {
    const Tensor<float> read = read_float(file, entry, host_memory(), MemoryCategory::data);
    values.assign(read.view().begin(), read.view().end());
  }
  if (values.empty() || !std::ranges::all_of(values, [](float value) { return value >= 0 && std::isfinite(value); }))
    fail<FormatError>("{}: the Fisher diagonal of {}'s outputs is not {} numbers of at least 0 in F32", name, weight,
                      outputs);
  return values;
}

/// 0 without an entry.
float read_range(const std::map<std::string, std::string>& metadata, const std::string& layer,
                 const std::string& name) {
  try {
    return input_range(metadata, layer, false).largest;
  } catch (const FormatError& error) {
    fail<FormatError>("{}: {}", name, error.what());
  }
}

}  // namespace

int64_t positions_for(int64_t images) {
  constexpr int64_t most = 64, rows = int64_t{1} << 17;
  return std::clamp<int64_t>(rows / images, 1, most);
}

Calibration calibrate(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                      CalibrationOptions options, const OnProgress& on_progress) {
  if (dataset.size() == 0) throw UsageError("calibration needs at least one image");
  if (options.positions == 0) options.positions = positions_for(dataset.size());
  options.range_images = std::min(options.range_images, dataset.size());
  Backend& backend = network.backend();
  const int64_t batch_size = std::max<int64_t>(1, std::min(options.batch_size, dataset.size()));
  std::vector<Stage> stages = make_stages(network, {batch_size, preprocess.crop, preprocess.crop, 3}, options);
  FisherDiagonal fisher(network, batch_size, options.seed);
  ImageFeed feed(backend, dataset, preprocess, {.batch_size = batch_size}, network.storage());

  int64_t done = 0;
  ConstActivations images;
  for (Batch batch; feed.next(batch, images); done += batch.size()) {
    TensorView<const float> x = images.floats();
    for (Stage& stage : stages) {
      report_progress(on_progress, done, dataset.size());
      const std::vector<float> copy = backend.to_host(x);
      stage.inputs.add({copy.data(), x.shape()}, done);
      add_ranges(stage.range, {copy.data(), x.shape()}, done, dataset.size(), options.range_images);
      if (stage.begin == fisher.begin()) fisher.add(x, done);
      if (stage.pass) x = stage.pass->forward(x);
    }
  }
  Calibration result{.fisher = fisher.finish(),
                     .images = dataset.size(),
                     .positions = options.positions,
                     .seed = options.seed,
                     .image_size = preprocess.crop};
  for (Stage& stage : stages) {
    result.hessians.emplace(stage.layer + ".weight", stage.inputs.finish());
    if (const float range = stage.range.largest(); std::isnormal(range)) result.ranges[stage.layer] = range;
  }
  return result;
}

std::span<const float> fisher_of(const Calibration& calibration, const std::string& weight) {
  const auto found = calibration.fisher.find(weight);
  return found == calibration.fisher.end() ? std::span<const float>() : found->second;
}

std::string fingerprint_of(const Dataset& dataset) {
  const std::string parts = checksum_of(dataset.pixels) + checksum_of(dataset.labels);
  return checksum_of(bytes_of(std::span<const char>(parts)));
}

std::string fingerprint_of(const StateDict& model) {
  std::string parts;
  for (const Parameter& parameter : model.parameters)
    parts += parameter.name + checksum_of(bytes_of(parameter.values().view().span()));
  return checksum_of(bytes_of(std::span<const char>(parts)));
}

void save_calibration(const std::filesystem::path& path, const Calibration& calibration) {
  std::vector<std::vector<float>> triangles;
  std::vector<TensorToWrite> tensors;
  for (const auto& [weight, hessian] : calibration.hessians) {
    triangles.push_back(upper_triangle(hessian));
    const std::span<const float> values = triangles.back();
    tensors.push_back({weight, DType::f32, {static_cast<int64_t>(values.size())}, bytes_of(values)});
  }
  for (const auto& [weight, fisher] : calibration.fisher)
    tensors.push_back({weight + outputs_suffix,
                       DType::f32,
                       {static_cast<int64_t>(fisher.size())},
                       bytes_of(std::span<const float>(fisher))});
  std::map<std::string, std::string> metadata = {{std::string(format_key), calibration_format},
                                                 {std::string(version_key), std::string(checked_version)},
                                                 {"images", std::to_string(calibration.images)},
                                                 {"positions", std::to_string(calibration.positions)},
                                                 {"seed", std::to_string(calibration.seed)},
                                                 {"image_size", std::to_string(calibration.image_size)},
                                                 {"data", calibration.data},
                                                 {"data_fingerprint", calibration.data_fingerprint},
                                                 {"model_fingerprint", calibration.model_fingerprint}};
  for (const auto& [layer, range] : calibration.ranges) set_input_range(metadata, layer, range);
  write_safetensors(path, tensors, metadata);
}

Calibration load_calibration(const std::filesystem::path& path, const StateDict& model) {
  const SafetensorsFile file(path);
  const std::string name = path.string();
  const auto& metadata = file.metadata();
  const bool ours = value_of(metadata, format_key) == calibration_format;
  const std::string version = ours ? text_of(metadata, "format_version", name) : "";
  if (version != older_version && version != checked_version)
    fail<FormatError>(
        "{} is no calibration that this program reads; pack --calibrate DATA --save-calibration makes one", name);
  Calibration result{.images = number_of<int64_t>(metadata, "images", name),
                     .positions = number_of<int64_t>(metadata, "positions", name),
                     .seed = number_of<uint64_t>(metadata, "seed", name),
                     .image_size = number_of<int>(metadata, "image_size", name),
                     .data = text_of(metadata, "data", name),
                     .data_fingerprint = text_of(metadata, "data_fingerprint", name),
                     .model_fingerprint = text_of(metadata, "model_fingerprint", name)};
  if (result.model_fingerprint != fingerprint_of(model))
    fail<UsageError>("{} was measured on another model: calibrate this one with --calibrate DATA", name);
  file.verify();
  for (const Parameter& parameter : model.parameters) {
    if (!parameter.is_weight()) continue;
    const int64_t inputs = parameter.shape().inner_elements();
    const TensorEntry& entry = file.at(parameter.name);
    // Compared before anything is allocated: what the model needs and no more.
    if (entry.dtype != DType::f32 ||
        entry.bytes.size() / sizeof(float) != static_cast<size_t>(inputs * (inputs + 1) / 2))
      fail<FormatError>("{}: {} is not the {} values in F32 that the Hessian of {} inputs has", name, parameter.name,
                        inputs * (inputs + 1) / 2, inputs);
    const Tensor<float> values = read_float(file, entry, host_memory(), MemoryCategory::data);
    try {
      result.hessians.emplace(parameter.name, from_upper_triangle(values.view().span(), inputs));
    } catch (const FormatError& error) {
      fail<FormatError>("{}: {}: {}", name, parameter.name, error.what());
    }
    const std::string layer = parameter.name.substr(0, parameter.name.rfind('.'));
    if (const float range = read_range(metadata, layer, name); range > 0) result.ranges[layer] = range;
    if (parameter.shape().rank() == 2)
      result.fisher.emplace(parameter.name, read_fisher(file, name, parameter.name, parameter.shape()[0]));
  }
  return result;
}

}  // namespace nibblenet
