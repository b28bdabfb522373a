#include "training/compression/calibration.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
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
      : spec_(spec), number_(number), options_(options) {}

  /// The rows of a batch x[N, H, W, C] or [N, D] in host memory, valid until the next call or as
  /// long as x; `first` is the number of its first image.
  TensorView<const float> rows_of(TensorView<const float> x, int64_t first) {
    if (spec_.kind == LayerKind::linear) return x;
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
    return {rows_.data(), {x.size(0) * taken, inputs}};
  }
  /// Rows of `images` images of the shape `input`, [1, H, W, C] or [1, D].
  Shape shape_of_rows(const Shape& input, int64_t images) const {
    if (spec_.kind == LayerKind::linear) return {images, input[1]};
    const int64_t outputs = spec_.window.output(input[1]) * spec_.window.output(input[2]);
    return {images * std::min(options_.positions, outputs), spec_.weight.inner_elements()};
  }
  void add(TensorView<const float> rows) {
    if (!sums_) sums_.emplace(spec_.weight.inner_elements());
    sums_->add(rows);
  }

  Hessian finish() { return std::move(*sums_).finish(); }

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
  std::optional<HessianAccumulator> sums_;  ///< none before the first rows: another rank may own the layer
  std::vector<float> rows_;                 ///< im2col, of a batch
};

/// The layers from one with parameters up to the next, and the inputs of the first of them.
struct Stage {
  std::string layer;
  size_t begin;
  Shape input;  ///< of an image
  LayerInputs inputs;
  RangeMeter range;
  std::optional<Pass> pass;  ///< none behind the last layer whose inputs are wanted
};

Shape input_shape_behind(const Network& network, size_t begin, size_t end, Shape shape) {
  for (size_t i = begin; i < end; ++i) shape = network.layers()[i].spec.output_shape(shape);
  return shape;
}

Shape of_one_image(const Shape& batch) {
  return batch.rank() == 4 ? Shape{1, batch[1], batch[2], batch[3]} : Shape{1, batch[1]};
}

/// Brings the rows of a round's batches to the owners of the layers, which add them in the order of
/// the batches. `rows`, by stage, are of this rank's batch.
void add_in_order(std::vector<Stage>& stages, Ranks& ranks, const WeightOwners& owners, const BlockShare& share,
                  int64_t images, const std::vector<std::vector<float>>& rows) {
  const auto images_of = [&](int rank) { return BlockShare{share.block, rank, share.ranks}.images(images).size(); };
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  std::vector<std::vector<std::vector<float>>> others(stages.size());  // by stage and rank
  for (size_t i = 0; i < stages.size(); ++i) {
    const int owner = owners.at(stages[i].layer + ".weight");
    if (owner != ranks.rank()) {
      if (!rows[i].empty()) sent.push_back({owner, std::as_bytes(std::span(rows[i]))});
      continue;
    }
    others[i].resize(static_cast<size_t>(ranks.size()));
    for (int rank = 0; rank < ranks.size(); ++rank) {
      if (rank == ranks.rank() || images_of(rank) == 0) continue;
      std::vector<float>& room = others[i][static_cast<size_t>(rank)];
      room.resize(static_cast<size_t>(stages[i].inputs.shape_of_rows(stages[i].input, images_of(rank)).elements()));
      received.push_back({rank, std::as_writable_bytes(std::span(room))});
    }
  }
  ranks.exchange(sent, received);
  for (size_t i = 0; i < stages.size(); ++i) {
    for (size_t rank = 0; rank < others[i].size(); ++rank) {
      const std::vector<float>& batch = static_cast<int>(rank) == ranks.rank() ? rows[i] : others[i][rank];
      const int64_t count = images_of(static_cast<int>(rank));
      if (count > 0) stages[i].inputs.add({batch.data(), stages[i].inputs.shape_of_rows(stages[i].input, count)});
    }
  }
}

/// Every rank's floats, by rank.
std::vector<std::vector<float>> gather_floats(Ranks& ranks, std::span<const float> mine) {
  std::vector<std::vector<float>> all;
  for (const std::string& bytes : ranks.gather({reinterpret_cast<const char*>(mine.data()), mine.size_bytes()})) {
    std::vector<float>& values = all.emplace_back(bytes.size() / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  return all;
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
                .input = of_one_image(input),
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

WeightOwners owners_of_weights(const StateDict& model, int64_t images, int ranks) {
  images = std::max<int64_t>(images, 1);
  std::vector<std::pair<double, std::string>> work;
  for (const Parameter& parameter : model.parameters) {
    if (!parameter.is_weight()) continue;
    const auto inputs = static_cast<double>(parameter.shape().inner_elements());
    const auto rows = static_cast<double>(parameter.shape().rank() == 2 ? images : images * positions_for(images));
    // The Hessian's sum, its factors, and GPTQ.
    work.emplace_back(inputs * inputs * (rows + inputs + static_cast<double>(parameter.shape()[0])), parameter.name);
  }
  std::ranges::sort(work, std::greater());
  std::vector<double> loads(static_cast<size_t>(ranks));
  WeightOwners owners;
  for (const auto& [cost, weight] : work) {
    const auto least = std::ranges::min_element(loads);
    *least += cost;
    owners[weight] = static_cast<int>(least - loads.begin());
  }
  return owners;
}

void collect_hessians(Ranks& ranks, const StateDict& model, const WeightOwners& owners, Calibration& calibration) {
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (const auto& [weight, owner] : owners) {
    if (owner == 0) continue;
    if (owner == ranks.rank()) sent.push_back({0, std::as_bytes(std::span(calibration.hessians.at(weight).values))});
    if (ranks.rank() != 0) continue;
    Hessian& hessian = calibration.hessians[weight];
    hessian.inputs = model.at(weight).shape().inner_elements();
    hessian.values.resize(static_cast<size_t>(hessian.inputs * hessian.inputs));
    received.push_back({owner, std::as_writable_bytes(std::span(hessian.values))});
  }
  ranks.exchange(sent, received);
}

Calibration calibrate(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                      CalibrationOptions options, const OnProgress& on_progress, Ranks* ranks,
                      const WeightOwners& owners) {
  if (dataset.size() == 0) throw UsageError("calibration needs at least one image");
  if (options.positions == 0) options.positions = positions_for(dataset.size());
  options.range_images = std::min(options.range_images, dataset.size());
  Backend& backend = network.backend();
  const int64_t batch_size = std::max<int64_t>(1, std::min(options.batch_size, dataset.size()));
  std::vector<Stage> stages = make_stages(network, {batch_size, preprocess.crop, preprocess.crop, 3}, options);
  FisherDiagonal fisher(network, batch_size, options.seed);
  const BlockShare share = ranks != nullptr ? BlockShare{batch_size, ranks->rank(), ranks->size()} : BlockShare();
  const int64_t together = batch_size * share.ranks;
  ImageFeed feed(backend, dataset, preprocess, {.batch_size = together, .share = share}, network.storage());

  int64_t done = 0;
  ConstActivations images;
  for (Batch batch; feed.next(batch, images);) {
    const int64_t whole = std::min(together, dataset.size() - done);
    const int64_t first = done + share.images(whole).begin;
    const bool stop = on_progress && on_progress(done, dataset.size());
    if (ranks != nullptr ? ranks->any(stop) : stop) throw Interrupted("stopped; nothing was written");
    std::vector<std::vector<float>> rows(stages.size());
    std::vector<float> gradients;
    TensorView<const float> x = images.floats();
    for (size_t i = 0; batch.size() > 0 && i < stages.size(); ++i) {
      Stage& stage = stages[i];
      if (ranks == nullptr) report_progress(on_progress, done, dataset.size());
      const std::vector<float> copy = backend.to_host(x);
      const TensorView<const float> own = stage.inputs.rows_of({copy.data(), x.shape()}, first);
      if (ranks == nullptr)
        stage.inputs.add(own);
      else
        rows[i].assign(own.span().begin(), own.span().end());
      add_ranges(stage.range, {copy.data(), x.shape()}, first, dataset.size(), options.range_images);
      if (stage.begin == fisher.begin()) gradients = fisher.gradients_of(x, first);
      if (stage.pass) x = stage.pass->forward(x);
    }
    if (ranks == nullptr) {
      fisher.add(gradients, batch.size());
    } else {
      add_in_order(stages, *ranks, owners, share, whole, rows);
      const std::vector<std::vector<float>> all = gather_floats(*ranks, gradients);
      for (size_t rank = 0; rank < all.size(); ++rank)
        if (const int64_t count = BlockShare{share.block, static_cast<int64_t>(rank), share.ranks}.images(whole).size();
            count > 0)
          fisher.add(all[rank], count);
    }
    done += whole;
  }
  Calibration result{.fisher = fisher.finish(),
                     .images = dataset.size(),
                     .positions = options.positions,
                     .seed = options.seed,
                     .image_size = preprocess.crop};
  for (Stage& stage : stages) {
    const std::string weight = stage.layer + ".weight";
    if (ranks == nullptr || owners.at(weight) == ranks->rank()) result.hessians.emplace(weight, stage.inputs.finish());
    if (ranks != nullptr) {
      const std::vector<std::vector<float>> all = gather_floats(*ranks, stage.range.largest_so_far());
      for (size_t rank = 0; rank < all.size(); ++rank)
        if (static_cast<int>(rank) != ranks->rank()) stage.range.add(all[rank]);
    }
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
