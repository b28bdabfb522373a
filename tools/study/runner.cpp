#include "tools/study/runner.h"

#include <algorithm>

#include "engine/quant/byte_values.h"
#include "engine/quant/quantizer.h"
#include "layers/network/precision_choice.h"
#include "tools/common/model_search.h"
#include "tools/common/report.h"
#include "tools/study/preparer.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

class Sweep {
 public:
  Sweep(SweepFolder& folder, const SweepInputs& inputs, std::span<const SweepScheme> schemes,
        const OnPosition& on_position, const std::function<void(const Row&)>& on_row)
      : folder_(folder),
        inputs_(inputs),
        schemes_(schemes),
        on_position_(on_position),
        on_row_(on_row),
        prepare_(folder, inputs, [this](const std::string& doing) { say(doing); }) {
    position_.schemes = 1 + schemes.size();
    position_.images = static_cast<int64_t>(position_.schemes) * images_each();
    const auto found = [&](const SweepScheme& scheme) { return folder.find(to_string(scheme)) != nullptr; };
    done_before_ = std::ranges::count_if(schemes, found) * images_each();
    reuse_float_row();
  }

  void run() {
    begin(1, float_row_);
    if (float_right_.empty()) measure_float();
    for (size_t i = 0; i < schemes_.size(); ++i) {
      const std::string name = to_string(schemes_[i]);
      begin(i + 2, name);
      if (folder_.find(name) == nullptr) add(to_json(measure(schemes_[i])));
      prepare_.write_files(schemes_[i]);
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

  PrecisionChoice choice_for(const SweepScheme& scheme, const StateDict& dict) const {
    // Simulated weights are float32 weights: another precision would change them.
    if (std::holds_alternative<SimulatedScheme>(scheme)) return {};
    return choose_precision(to_string(inputs_.precision), inputs_.backend, dict);
  }

  static void expect_fit(const SweepScheme& scheme, const PrecisionChoice& choice, const Network& network) {
    try {
      expect_demanded(choice, network);
    } catch (const UsageError& error) {
      fail<UsageError>("{}: {}", to_string(scheme), error.what());
    }
  }

  void add(const nlohmann::json& row) {
    folder_.append(row);
    done_here_ += images_each();
    on_row_(folder_.rows().back());
  }

  /// Of one scheme.
  int64_t images_each() const {
    return inputs_.dataset.size() + (inputs_.validation != nullptr ? inputs_.validation->size() : 0);
  }

  Evaluation evaluate_on(const Dataset& dataset, Network& network, int64_t before) {
    return evaluate(network, dataset, inputs_.preprocess, inputs_.batch, [&](int64_t done, int64_t) {
      SweepPosition now = position_;
      now.images_done = std::min(position_.images_done + before + done, position_.images);
      return on_position_(now);
    });
  }

  void evaluate_network(Network& network, Measurement& result) {
    result.evaluation = evaluate_on(inputs_.dataset, network, 0);
    if (inputs_.validation != nullptr)
      result.validation = evaluate_on(*inputs_.validation, network, inputs_.dataset.size());
  }

  /// Takes over the float model's row of an earlier run, if all of it is there.
  void reuse_float_row() {
    const Row* row = folder_.find(float_row_);
    const auto right = folder_.float_right();
    if (row == nullptr || !right || std::ranges::count(*right, 1) != row->correct) return;
    float_right_ = *right;
    done_before_ += images_each();
  }

  void measure_float() {
    const Precision precision = float_precision(inputs_.precision);
    Measurement result{.precision = precision, .program = program_};
    Network network(inputs_.backend, prepare_.copy_of_model(), precision);
    evaluate_network(network, result);
    float_right_ = right_ones(result.evaluation);
    folder_.save_float_right(float_right_);  // first: a row without it would have to be measured again
    result.float_right = float_right_;
    prepare_.note_no_errors(result);
    result.size = size_json(network.ledger(), network.file_bytes(), network.header_bytes());
    if (folder_.find(float_row_) == nullptr) {
      add(to_json(result));
    } else {  // its row had lost the images it was right on
      done_before_ += images_each();
    }
  }

  Measurement measure(const SweepScheme& scheme) {
    Measurement result{
        .scheme = scheme, .precision = inputs_.precision, .float_right = float_right_, .program = program_};
    StateDict dict = prepare_(scheme, result);
    const bool simulated = std::holds_alternative<SimulatedScheme>(scheme);
    const PrecisionChoice choice = choice_for(scheme, dict);
    Network network(inputs_.backend, std::move(dict), choice.precision);
    expect_fit(scheme, choice, network);
    if (!simulated) result.size = size_json(network.ledger(), network.file_bytes(), network.header_bytes());
    say(to_string(scheme));
    evaluate_network(network, result);
    return result;
  }

  SweepFolder& folder_;
  const SweepInputs& inputs_;
  std::span<const SweepScheme> schemes_;
  const OnPosition& on_position_;
  const std::function<void(const Row&)>& on_row_;
  Preparer prepare_;
  std::string program_ = checksum_of_program();
  std::string float_row_ = std::string(to_string(float_precision(inputs_.precision)));
  SweepPosition position_;
  int64_t done_before_ = 0;  ///< images of rows that were there
  int64_t done_here_ = 0;
  std::vector<uint8_t> float_right_;
};

/// Bytes of a packed model by the formula, with what the formula forgets for magnitude-sorted
/// blocks: their numbers.
double expected_bytes(const Scheme& scheme, const StateDict& model) {
  double bytes = 1e5;  // header, biases, padding
  for (const Parameter& parameter : model.parameters) {
    if (!parameter.is_weight()) continue;
    bytes += estimated_size(scheme, parameter.shape()).total();
    if (traits_of(scheme.method).sorted) bytes += 2.0 * static_cast<double>(parameter.shape().elements());
  }
  return bytes;
}

/// At most a byte a weight and, for blocks of 16, a fourth of one for scales.
double expected_bytes(const Recipe&, const StateDict& model) {
  double bytes = 1e5;
  for (const Parameter& parameter : model.parameters)
    if (parameter.is_weight()) bytes += 1.25 * static_cast<double>(parameter.shape().elements());
  return bytes;
}

void check_recipe(const Recipe& recipe, const StateDict& model, bool calibrated) {
  const PackingFlags flags = flags_of(recipe);
  if (flags.calibration.calibrated() && !calibrated)
    fail<UsageError>("{} needs a calibration: add --calibrate DATA or --calibration FILE", recipe.text);
  flags.expect_fit(model);
}

/// Throws UsageError for a scheme whose layers cannot compute in int8, whatever their weights.
void expect_one_scale_a_channel(const Scheme& scheme) {
  for (const Shape& shape : {Shape{1, 4096}, Shape{1, 64, 8, 8}}) {
    const Tensor<float> zeros(host_memory(), shape, MemoryCategory::data);
    const PackedTensor packed = quantize(zeros.view(), scheme, "a weight");
    const Codebook codebook = codebook_of(packed);
    if (!has_one_step_a_channel(view_of(packed, codebook)))
      fail<UsageError>("--precision int8: {} has not one scale a channel, as int8 needs", to_string(scheme));
  }
}

void expect_unchanged(const ModelFile& file, const SweepFolder& folder) {
  const Row* row = folder.find(to_string(file));
  if (row != nullptr && row->checksum != checksum_of(file))
    fail<UsageError>("{} is another file than the one that {} has a row of: rename it, or choose another --out",
                     file.path.string(), folder.path().string());
}

}  // namespace

void check_schemes(std::span<const SweepScheme> schemes, const StateDict& model, bool calibrated, Precision precision) {
  for (const SweepScheme& scheme : schemes) {
    if (const auto* packed = std::get_if<Scheme>(&scheme); packed != nullptr && precision == Precision::int8)
      expect_one_scale_a_channel(*packed);
    if (const auto* recipe = std::get_if<Recipe>(&scheme)) check_recipe(*recipe, model, calibrated);
    if (const auto* file = std::get_if<ModelFile>(&scheme)) check_model_file(file->path);
  }
}

void run_sweep(SweepFolder& folder, const SweepInputs& inputs, std::span<const SweepScheme> schemes,
               const OnPosition& on_position, const std::function<void(const Row&)>& on_row) {
  for (const SweepScheme& scheme : schemes)
    if (const auto* file = std::get_if<ModelFile>(&scheme)) expect_unchanged(*file, folder);
  Sweep(folder, inputs, schemes, on_position, on_row).run();
}

void check_disk(const SweepFolder& folder, const StateDict& model, std::span<const SweepScheme> schemes,
                bool keep_models) {
  double largest = 0, all = 0;
  const auto count = [&](const auto& scheme) {
    const bool done =
        keep_models ? fs::exists(folder.path() / model_file_name(scheme)) : folder.find(to_string(scheme)) != nullptr;
    if (done) return;
    const double bytes = expected_bytes(scheme, model);
    largest = std::max(largest, bytes);
    all += bytes;
  };
  for (const SweepScheme& each : schemes) {
    if (const auto* scheme = std::get_if<Scheme>(&each)) count(*scheme);
    if (const auto* recipe = std::get_if<Recipe>(&each)) count(*recipe);
  }
  const double needed = keep_models ? all : largest;
  const auto free = static_cast<double>(fs::space(folder.path()).available);
  if (free >= needed) return;
  fail<IoError>(
      "{} has {:.0f} MB of free space, but packed models take about {:.0f} MB: free some, choose another --out{}",
      folder.path().string(), free / 1e6, needed / 1e6, keep_models ? ", or pass --no-keep-models" : "");
}

}  // namespace nibblenet::tools
