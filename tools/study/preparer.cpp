#include "tools/study/preparer.h"

#include <algorithm>
#include <ctime>

#include "engine/core/stopwatch.h"
#include "layers/network/class_names.h"
#include "layers/network/network_spec.h"
#include "layers/network/precision_choice.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

/// Processor time of all threads, which other programs on the machine change least.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

/// Weights behind one scale, then, lie in whole rows: how many values a row needs says how many
/// bits a code does.
bool rows_share_scales(const Scheme& scheme) {
  const Granularity::Kind kind = scheme.granularity.kind;
  return kind == Granularity::Kind::tensor || kind == Granularity::Kind::channel || kind == Granularity::Kind::row;
}

void take_larger(std::optional<ValueNeed>& all, const ValueNeed& layer) {
  if (!all || layer.distinct > all->distinct) all = layer;
}

std::optional<int> tree_bits(const SweepScheme& scheme) {
  if (const auto* simulated = std::get_if<SimulatedScheme>(&scheme))
    return simulated->simulation == Simulation::dynamic_tree ? std::optional(simulated->bits) : std::nullopt;
  const auto* packed = std::get_if<Scheme>(&scheme);
  const bool by_row = packed != nullptr && packed->granularity.kind == Granularity::Kind::row;
  return by_row && packed->method == Method::dynamic_tree ? std::optional(packed->bits) : std::nullopt;
}

/// What tells one calibration from another, wherever its images lie.
std::string identity_of(const Calibration& calibration) {
  return fmt::format("{} images; {} positions; seed {}; {} pixels; {}", calibration.images, calibration.positions,
                     calibration.seed, calibration.image_size, calibration.data_fingerprint);
}

}  // namespace

Preparer::Preparer(const SweepFolder& folder, const SweepInputs& inputs, std::function<void(const std::string&)> say)
    : folder_(folder), inputs_(inputs), say_(std::move(say)) {
  for (const LayerSpec& layer : layers_of(inputs.model))
    if (layer.has_parameters()) layers_.push_back({layer.name, &inputs.model.at(layer.name + ".weight")});
}

StateDict Preparer::operator()(const SweepScheme& scheme, Measurement& result) {
  const Stopwatch watch;
  StateDict dict = std::visit([&](const auto& each) { return prepare(each, result); }, scheme);
  if (const std::optional<int> bits = tree_bits(scheme)) result.exponent_counts = counts_of_all(*bits);
  result.prepare_seconds = watch.seconds();
  return dict;
}

StateDict Preparer::copy_of_model() const {
  StateDict copy = dequantized(inputs_.model);
  copy.file_bytes = inputs_.model.file_bytes;
  copy.header_bytes = inputs_.model.header_bytes;
  for (Parameter& parameter : copy.parameters) parameter.file_bytes = inputs_.model.at(parameter.name).file_bytes;
  return copy;
}

void Preparer::write_files(const SweepScheme& scheme) const {
  const auto restore = [&](const auto& each) {
    const fs::path file = folder_.path() / model_file_name(each);
    if (inputs_.keep_models && !fs::exists(file)) save_state_dict(file, packed_by(each));
  };
  if (const auto* packed = std::get_if<Scheme>(&scheme)) restore(*packed);
  if (const auto* recipe = std::get_if<Recipe>(&scheme)) restore(*recipe);
  if (const std::optional<int> bits = tree_bits(scheme)) write_counts(*bits);
}

StateDict Preparer::prepare(const Scheme& scheme, Measurement& result) {
  StateDict dict = read_back(packed_by(scheme), model_file_name(scheme));
  say_("comparing " + nibblenet::to_string(scheme));
  compare(dict, rows_share_scales(scheme), result);
  return dict;
}

StateDict Preparer::prepare(const SimulatedScheme& scheme, Measurement& result) {
  result.claimed.emplace();
  StateDict dict = copy_of_model();
  for (const Weights& layer : layers_) {
    say_("simulating " + nibblenet::to_string(scheme));
    const TensorView<float> values = dict.at(layer.parameter->name).values().view();
    simulate(values, layer.view(), scheme, layer.parameter->name);
    const EstimatedSize claimed = claimed_size(scheme, values.shape());
    result.claimed->codes += claimed.codes;
    result.claimed->scales += claimed.scales;
  }
  compare(dict, true, result);
  return dict;
}

StateDict Preparer::prepare(const Recipe& recipe, Measurement& result) {
  if (const Calibration* calibration = calibration_for(flags_of(recipe)))
    result.calibration = identity_of(*calibration);
  const double start = processor_seconds();
  const StateDict packed = packed_by(recipe);
  const double packing_seconds = processor_seconds() - start;
  StateDict dict = read_back(packed, model_file_name(recipe));
  compare(dict, false, result);
  compress(dict, result);
  result.compressed->encode_seconds += packing_seconds;
  return dict;
}

StateDict Preparer::prepare(const ModelFile& file, Measurement& result) {
  say_("reading " + file.path.string());
  result.checksum = checksum_of(file);
  StateDict dict = load_state_dict(file.path);
  if (!dict.packed()) fail<UsageError>("{} is not packed: --models takes packed ones", file.path.string());
  for (const Weights& layer : layers_)
    if (dict.at(layer.parameter->name).shape() != layer.parameter->shape())
      fail<UsageError>("{}: {} has another shape than in the float model", file.path.string(), layer.parameter->name);
  const int64_t classes = class_count(dict);
  if (!same_classes(class_names(dict.metadata, classes), class_names(inputs_.model.metadata, classes)))
    fail<UsageError>("{}: its classes are not those of the float model, or in another order", file.path.string());
  compare(dict, false, result);
  compress(dict, result);
  return dict;
}

StateDict Preparer::packed_by(const Scheme& scheme) const {
  StateDict dict;
  dict.metadata = inputs_.model.metadata;
  forget_precisions(dict.metadata);
  for (const Parameter& parameter : inputs_.model.parameters) {
    say_("packing " + nibblenet::to_string(scheme));
    Parameter copy{.name = parameter.name};
    if (parameter.is_weight())
      copy.value =
          inputs_.backend.quantize(parameter.values().view(), fitted(scheme, inputs_.model, parameter), parameter.name);
    else
      copy.value = parameter.dequantized();
    dict.parameters.push_back(std::move(copy));
  }
  return dict;
}

StateDict Preparer::packed_by(const Recipe& recipe) const {
  const PackingFlags flags = flags_of(recipe);
  const Calibration* calibration = calibration_for(flags);
  StateDict dict = copy_of_model();
  forget_precisions(dict.metadata);
  describe(dict.metadata, flags.calibration, calibration);
  WeightPacker packer = flags.calibration.packer(calibration, inputs_.backend);
  if (flags.allocation.given()) {
    allocate_and_pack(flags, dict, packer, inputs_.backend, inputs_.data);
    return dict;
  }
  SchemeChoice schemes(flags.scheme, flags.calibration.uses_gptq(), dict);
  pack_weights(dict, std::ref(schemes), packer, [&](int64_t done, int64_t total, const std::string&) {
    say_(fmt::format("{}: {:.0f} % packed", recipe.text,
                     100.0 * static_cast<double>(done) / static_cast<double>(total)));
  });
  return dict;
}

/// Null for flags that ask for none. Rows of two different calibrations do not compare.
const Calibration* Preparer::calibration_for(const PackingFlags& flags) const {
  if (!flags.calibration.calibrated()) return nullptr;
  const Calibration& calibration = inputs_.calibration();
  const std::string identity = identity_of(calibration);
  for (const Row& row : folder_.rows())
    if (!row.calibration.empty() && row.calibration != identity)
      fail<UsageError>("{} holds rows of another calibration ({}, not {}): choose another --out, or calibrate the same",
                       folder_.path().string(), row.calibration, identity);
  return &calibration;
}

/// Written and read back, so that errors, sizes and accuracy are those of the file.
StateDict Preparer::read_back(const StateDict& packed, const std::string& name) const {
  // A temporary file has a name of its own: the sweep never deletes a model that was there
  // before.
  const fs::path file = folder_.path() / (inputs_.keep_models ? name : SweepFolder::passing_model);
  save_state_dict(file, packed);
  StateDict dict = load_state_dict(file);
  if (!inputs_.keep_models) fs::remove(file);
  return dict;
}

/// The codes of the plain file, entropy-coded: one evaluation serves both files.
void Preparer::compress(const StateDict& dict, Measurement& result) const {
  say_("compressing");
  const fs::path file = folder_.path() / SweepFolder::passing_model;
  const double start = processor_seconds();
  save_state_dict(file, dict, Compression::rans,
                  [&](int64_t, int64_t, const std::string& weight) { say_("compressing " + weight); });
  const double written = processor_seconds();
  const int64_t bytes = load_state_dict(file).file_bytes;
  result.compressed = {
      .file = bytes, .encode_seconds = written - start, .decode_seconds = processor_seconds() - written};
  fs::remove(file);
}

void Preparer::compare(const StateDict& dict, bool count_values, Measurement& result) const {
  for (const Weights& layer : layers_) {
    const Tensor<float> values = dict.at(layer.parameter->name).dequantized();
    result.errors.emplace_back(layer.name, quantization_error(layer.view(), values.view()));
    if (count_values) take_larger(result.need, bits_needed(values.view()));
  }
}

ExponentCounts Preparer::counts_of_all(int bits) const {
  ExponentCounts total;
  for (const Weights& layer : layers_) {
    const ExponentCounts counts = exponent_counts(layer.view(), bits, layer.parameter->name);
    for (size_t e = 0; e < total.counts.size(); ++e) total.counts[e] += counts.counts[e];
  }
  return total;
}

/// The notebooks' counts of a width, layer by layer and in all.
void Preparer::write_counts(int bits) const {
  const fs::path file = folder_.path() / counts_file_name(bits);
  if (fs::exists(file)) return;
  const auto used = [&](const ExponentCounts& counts) {
    return std::vector<int64_t>(counts.counts.begin(), counts.counts.begin() + bits);
  };
  nlohmann::json layers = nlohmann::json::array();
  for (const Weights& layer : layers_)
    layers.push_back(
        {{"name", layer.name}, {"counts", used(exponent_counts(layer.view(), bits, layer.parameter->name))}});
  const nlohmann::json document = {{"bits", bits}, {"counts", used(counts_of_all(bits))}, {"layers", layers}};
  write_text_file(file, document.dump(2) + "\n");
}

}  // namespace nibblenet::tools
