#include "tools/study/runner.h"

#include <algorithm>
#include <chrono>

#include "engine/model/alexnet.h"
#include "tools/common/report.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_weight(const Parameter& parameter) { return parameter.shape().rank() > 1; }

/// A layer's weights in the float model.
struct Weights {
  std::string name;  ///< "features.0"
  const Parameter* parameter;
  TensorView<const float> view() const { return parameter->values().view(); }
};

/// Weights behind one scale, then, lie in whole rows: how many values a row needs says how many bits a code does.
bool rows_share_scales(const Scheme& scheme) {
  const Granularity::Kind kind = scheme.granularity.kind;
  return kind == Granularity::Kind::tensor || kind == Granularity::Kind::channel || kind == Granularity::Kind::row;
}

void take_larger(std::optional<ValueNeed>& all, const ValueNeed& layer) {
  if (!all || layer.distinct > all->distinct) all = layer;
}

class Sweep {
 public:
  Sweep(SweepFolder& folder, const SweepInputs& inputs, std::span<const SweepScheme> schemes,
        const OnPosition& on_position, const std::function<void(const Row&)>& on_row)
      : folder_(folder), inputs_(inputs), schemes_(schemes), on_position_(on_position), on_row_(on_row) {
    position_.schemes = 1 + schemes.size();
    position_.images = static_cast<int64_t>(position_.schemes) * inputs.dataset.size();
    const auto found = [&](const SweepScheme& scheme) { return folder.find(to_string(scheme)) != nullptr; };
    done_before_ = std::ranges::count_if(schemes, found) * inputs.dataset.size();
    for (const LayerSpec& layer : alexnet_layers(inputs.model))
      if (layer.has_parameters()) layers_.push_back({layer.name, &inputs.model.at(layer.name + ".weight")});
    reuse_float_row();
  }

  void run() {
    begin(1, std::string(to_string(inputs_.precision)));
    if (float_right_.empty()) measure_float();
    for (size_t i = 0; i < schemes_.size(); ++i) {
      const std::string name = to_string(schemes_[i]);
      begin(i + 2, name);
      if (folder_.find(name) == nullptr) {
        add(to_json(measure(schemes_[i])));
      } else if (const auto* scheme = std::get_if<Scheme>(&schemes_[i])) {
        restore_model(*scheme);
      }
      if (const std::optional<int> bits = tree_bits(schemes_[i])) write_counts(*bits);
    }
  }

 private:
  void begin(size_t number, const std::string& doing) {
    position_.scheme = number;
    say(doing);
  }

  void say(const std::string& doing) {
    position_.doing = doing;
    position_.images_done = done_before_ + done_here_;
    if (on_position_(position_)) throw Interrupted("stopped between two schemes");
  }

  void add(const nlohmann::json& row) {
    folder_.append(row);
    done_here_ += inputs_.dataset.size();
    on_row_(folder_.rows().back());
  }

  Evaluation evaluate_network(Network& network) {
    return evaluate(network, inputs_.dataset, inputs_.preprocess, inputs_.batch, [&](int64_t done, int64_t) {
      SweepPosition now = position_;
      now.images_done = std::min(position_.images_done + done, position_.images);
      return on_position_(now);
    });
  }

  /// What an earlier run found, if all of it is there.
  void reuse_float_row() {
    const Row* row = folder_.find(to_string(inputs_.precision));
    const auto right = folder_.float_right();
    if (row == nullptr || !right || std::ranges::count(*right, 1) != row->correct) return;
    float_right_ = *right;
    done_before_ += inputs_.dataset.size();
  }

  void measure_float() {
    Measurement result{.precision = inputs_.precision};
    Network network(inputs_.backend, copy_of_model(), inputs_.precision);
    result.evaluation = evaluate_network(network);
    float_right_ = right_ones(result.evaluation);
    folder_.save_float_right(float_right_);  // first: a row without it would have to be measured again
    result.float_right = float_right_;
    for (const Weights& layer : layers_)
      result.errors.emplace_back(layer.name, quantization_error(layer.view(), layer.view()));
    result.size = size_json(network.ledger(), network.file_bytes(), network.header_bytes());
    if (folder_.find(to_string(inputs_.precision)) == nullptr) {
      add(to_json(result));
    } else {  // its row had lost the images it was right on
      done_before_ += inputs_.dataset.size();
    }
  }

  Measurement measure(const SweepScheme& scheme) {
    const auto start = Clock::now();
    Measurement result{.scheme = scheme, .precision = inputs_.precision, .float_right = float_right_};
    const auto* packed = std::get_if<Scheme>(&scheme);
    StateDict dict =
        packed != nullptr ? pack(*packed, result) : simulate_all(std::get<SimulatedScheme>(scheme), result);
    if (const std::optional<int> bits = tree_bits(scheme)) result.exponent_counts = counts_of_all(*bits);
    // Simulated weights are float32 weights: another precision would change them.
    Network network(inputs_.backend, std::move(dict), packed != nullptr ? inputs_.precision : Precision::float32);
    if (packed != nullptr) result.size = size_json(network.ledger(), network.file_bytes(), network.header_bytes());
    result.prepare_seconds = seconds_since(start);
    say(to_string(scheme));
    result.evaluation = evaluate_network(network);
    return result;
  }

  /// Quantized, written, and read back: errors, sizes and accuracy are those of the file.
  StateDict pack(const Scheme& scheme, Measurement& result) {
    // What does not stay has a name of its own: a model that lies there already is nobody's to delete.
    const fs::path file = folder_.path() / (inputs_.keep_models ? model_file_name(scheme) : SweepFolder::passing_model);
    write_model(scheme, file);
    StateDict dict = load_state_dict(file);
    if (!inputs_.keep_models) fs::remove(file);
    say("comparing " + to_string(SweepScheme(scheme)));
    for (const Weights& layer : layers_) {
      Tensor<float> values(host_memory(), layer.parameter->shape(), MemoryCategory::data);
      dequantize(dict.at(layer.parameter->name).packed_values(), values.view());
      compare(layer, std::as_const(values).view(), rows_share_scales(scheme), result);
    }
    return dict;
  }

  void write_model(const Scheme& scheme, const fs::path& file) {
    StateDict dict;
    dict.metadata = inputs_.model.metadata;
    for (const Parameter& parameter : inputs_.model.parameters) {
      say("packing " + to_string(SweepScheme(scheme)));
      Parameter copy{.name = parameter.name};
      if (is_weight(parameter)) {
        copy.value = inputs_.backend.quantize(parameter.values().view(), scheme, parameter.name);
      } else {
        copy.value = copy_of(parameter.values().view());
      }
      dict.parameters.push_back(std::move(copy));
    }
    save_state_dict(file, dict);
  }

  /// A model that an earlier run measured and did not keep.
  void restore_model(const Scheme& scheme) {
    const fs::path file = folder_.path() / model_file_name(scheme);
    if (inputs_.keep_models && !fs::exists(file)) write_model(scheme, file);
  }

  StateDict simulate_all(const SimulatedScheme& scheme, Measurement& result) {
    result.claimed.emplace();
    StateDict dict = copy_of_model();
    for (const Weights& layer : layers_) {
      say("simulating " + to_string(SweepScheme(scheme)));
      const TensorView<float> values = dict.at(layer.parameter->name).values().view();
      simulate(values, layer.view(), scheme, layer.parameter->name);
      compare(layer, values, true, result);
      const EstimatedSize claimed = claimed_size(scheme, values.shape());
      result.claimed->codes += claimed.codes;
      result.claimed->scales += claimed.scales;
    }
    return dict;
  }

  static void compare(const Weights& layer, TensorView<const float> values, bool count_values, Measurement& result) {
    result.errors.emplace_back(layer.name, quantization_error(layer.view(), values));
    if (count_values) take_larger(result.need, bits_needed(values));
  }

  static std::optional<int> tree_bits(const SweepScheme& scheme) {
    if (const auto* simulated = std::get_if<SimulatedScheme>(&scheme))
      return simulated->simulation == Simulation::dynamic_tree ? std::optional(simulated->bits) : std::nullopt;
    const auto& packed = std::get<Scheme>(scheme);
    const bool by_row = packed.granularity.kind == Granularity::Kind::row;
    return packed.method == Method::dynamic_tree && by_row ? std::optional(packed.bits) : std::nullopt;
  }

  ExponentCounts counts_of_all(int bits) const {
    ExponentCounts total;
    for (const Weights& layer : layers_) {
      const ExponentCounts counts = exponent_counts(layer.view(), bits, layer.parameter->name);
      for (size_t e = 0; e < total.counts.size(); ++e) total.counts[e] += counts.counts[e];
    }
    return total;
  }

  /// The notebooks' counts of a width, layer by layer and in all.
  void write_counts(int bits) const {
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

  static Tensor<float> copy_of(TensorView<const float> values) {
    Tensor<float> copy(host_memory(), values.shape(), MemoryCategory::data);
    std::ranges::copy(values, copy.data());
    return copy;
  }

  StateDict copy_of_model() const {
    StateDict copy = dequantized(inputs_.model);
    copy.file_bytes = inputs_.model.file_bytes;
    copy.header_bytes = inputs_.model.header_bytes;
    for (Parameter& parameter : copy.parameters) parameter.file_bytes = inputs_.model.at(parameter.name).file_bytes;
    return copy;
  }

  SweepFolder& folder_;
  const SweepInputs& inputs_;
  std::span<const SweepScheme> schemes_;
  const OnPosition& on_position_;
  const std::function<void(const Row&)>& on_row_;
  std::vector<Weights> layers_;  ///< in the network's order
  SweepPosition position_;
  int64_t done_before_ = 0;  ///< images of rows that were there
  int64_t done_here_ = 0;
  std::vector<uint8_t> float_right_;
};

/// Bytes of a packed model by the formula, with what the formula forgets for magnitude-sorted blocks: their numbers.
double expected_bytes(const Scheme& scheme, const StateDict& model) {
  double bytes = 1e5;  // header, biases, padding
  for (const Parameter& parameter : model.parameters) {
    if (!is_weight(parameter)) continue;
    bytes += estimated_size(scheme, parameter.shape()).total();
    if (traits_of(scheme.method).sorted) bytes += 2.0 * static_cast<double>(parameter.shape().elements());
  }
  return bytes;
}

}  // namespace

void run_sweep(SweepFolder& folder, const SweepInputs& inputs, std::span<const SweepScheme> schemes,
               const OnPosition& on_position, const std::function<void(const Row&)>& on_row) {
  Sweep(folder, inputs, schemes, on_position, on_row).run();
}

void check_disk(const SweepFolder& folder, const StateDict& model, std::span<const SweepScheme> schemes,
                bool keep_models) {
  double largest = 0, all = 0;
  for (const SweepScheme& each : schemes) {
    const auto* scheme = std::get_if<Scheme>(&each);
    if (scheme == nullptr) continue;
    const bool done =
        keep_models ? fs::exists(folder.path() / model_file_name(*scheme)) : folder.find(to_string(each)) != nullptr;
    if (done) continue;
    const double bytes = expected_bytes(*scheme, model);
    largest = std::max(largest, bytes);
    all += bytes;
  }
  const double needed = keep_models ? all : largest;
  const auto free = static_cast<double>(fs::space(folder.path()).available);
  if (free >= needed) return;
  fail<IoError>(
      "{} has {:.0f} MB of free space, but packed models take about {:.0f} MB: free some, choose another --out{}",
      folder.path().string(), free / 1e6, needed / 1e6, keep_models ? ", or pass --no-keep-models" : "");
}

}  // namespace nibblenet::tools
