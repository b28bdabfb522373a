#include "tools/timing/layers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "layers/network/input_range.h"
#include "layers/network/network_spec.h"

namespace nibblenet::tools {
namespace {

constexpr int64_t most_copies = 64;
constexpr int64_t most_in_a_row = 20;  ///< runs between two looks at the clock; fewer when a run takes long

/// Everything that one run of a layer touches.
struct Operands {
  std::unique_ptr<Weight> weight;
  Tensor<float> bias;
  Buffer<std::byte> x;
  Buffer<std::byte> y;
};

/// A layer alone, which cycles through copies of its operands.
class LoneLayer {
 public:
  LoneLayer(Backend& backend, const LayerSpec& spec, const StateDict& parameters, const Shape& input,
            Precision precision, bool behind_relu, bool last)
      : backend_(backend),
        spec_(spec),
        parameters_(parameters),
        input_(input),
        output_(spec.output_shape(input)),
        precision_(precision),
        range_(input_range(parameters.metadata, spec.name, behind_relu)),
        stored_(storage_of(precision)),
        written_(last ? Precision::float32 : stored_) {
    add();
  }

  /// Makes copies of the operands until all together exceed `bytes`. Returns false, and makes none,
  /// when that takes more than most_copies.
  bool go_beyond(size_t bytes) {
    const auto wanted = static_cast<int64_t>(static_cast<double>(bytes) / this->bytes()) + 2;
    if (wanted > most_copies) return false;
    while (static_cast<int64_t>(operands_.size()) < wanted) add();
    return true;
  }

  /// Milliseconds of one run: the mean of several in a row, replayed if the backend records.
  double once() {
    if (!prepared_ || (recording_ && !recording_->current())) prepare();
    const Stopwatch watch;
    if (recording_)
      recording_->replay();
    else
      run_in_a_row();
    backend_.synchronize();
    return watch.milliseconds() / static_cast<double>(in_a_row_);
  }

  double bytes() const {
    const Operands& first = operands_.front();
    const double weights = first.weight ? static_cast<double>(first.weight->resident().total()) : 0.0;
    return weights + sizeof(float) * static_cast<double>(first.bias.elements()) +
           static_cast<double>(first.x.bytes() + first.y.bytes());
  }

  /// Of the factors of its product.
  Precision precision() const {
    const Operands& first = operands_.front();
    return first.weight ? first.weight->product_precision().value_or(stored_) : stored_;
  }

  double flops() const {
    if (!spec_.has_parameters()) return 0;
    const double share = operands_.front().weight->product_share(spec_.window.stride);
    return 2.0 * share * static_cast<double>(output_.elements()) * static_cast<double>(spec_.weight.inner_elements());
  }

 private:
  /// Runs every copy once, chooses the number of runs in a row by that time, and records them. Each
  /// copy occurs equally often.
  void prepare() {
    const auto copies = static_cast<int64_t>(operands_.size());
    run(operands_.front());
    backend_.synchronize();
    const Stopwatch watch;
    for (Operands& operands : operands_) run(operands);
    backend_.synchronize();
    const double each = watch.milliseconds() / static_cast<double>(copies);
    const auto enough = static_cast<int64_t>(std::min<double>(std::ceil(shortest_sample / each), most_in_a_row));
    in_a_row_ = (std::max(enough, copies) + copies - 1) / copies * copies;
    recording_ = backend_.record([this] { run_in_a_row(); });
    prepared_ = true;
  }

  void run_in_a_row() {
    for (int64_t i = 0; i < in_a_row_; ++i) run(operands_[static_cast<size_t>(i) % operands_.size()]);
  }

  void add() {
    prepared_ = false;
    Operands operands;
    if (spec_.has_parameters()) {
      const Parameter& weight = parameters_.at(spec_.name + ".weight");
      const Parameter& bias = parameters_.at(spec_.name + ".bias");
      operands.weight = weight.packed() ? backend_.make_weight(weight.packed_values(), precision_, range_)
                                        : backend_.make_weight(weight.values().view(), precision_);
      operands.bias = Tensor<float>(backend_, bias.shape(), MemoryCategory::data);
      backend_.copy_from_host(operands.bias.data(), bias.values().data(), bias.values().view().span().size_bytes());
    }
    operands.x = {backend_, static_cast<size_t>(input_.elements()) * bytes_of(stored_), MemoryCategory::data};
    operands.y = {backend_, static_cast<size_t>(output_.elements()) * bytes_of(written_), MemoryCategory::data};
    fill(operands.x);
    operands_.push_back(std::move(operands));
  }

  /// Fills an input with positive values, like the output of a ReLU.
  void fill(Buffer<std::byte>& x) {
    const std::vector<float> values = random_values(input_.elements(), 0, 1);
    if (stored_ == Precision::float32) {
      backend_.copy_from_host(x.data(), values.data(), x.bytes());
      return;
    }
    std::vector<f16> fp16(values.size());
    for (size_t i = 0; i < fp16.size(); ++i) fp16[i].bits = f32_to_f16(values[i]);
    backend_.copy_from_host(x.data(), fp16.data(), x.bytes());
  }

  void run(Operands& operands) {
    const Activations y(operands.y.data(), output_, written_);
    const Activations x(operands.x.data(), input_, stored_);
    if (operands.weight != nullptr && operands.weight->rotation()) backend_.hadamard(x, x, operands.weight->rotation());
    forward_layer(backend_, spec_, y, x, operands.weight.get(), std::as_const(operands.bias).view(), {});
  }

  Backend& backend_;
  const LayerSpec& spec_;
  const StateDict& parameters_;
  Shape input_;
  Shape output_;
  Precision precision_;  ///< asked for
  InputRange range_;
  Precision stored_;
  Precision written_;
  std::vector<Operands> operands_;
  int64_t in_a_row_ = 1;
  std::unique_ptr<Recording> recording_;
  bool prepared_ = false;
};

}  // namespace

std::vector<LayerTiming> time_layers(Backend& backend, const StateDict& parameters, Precision precision,
                                     int64_t image_size, int64_t batch, double seconds, const std::string& label) {
  const std::vector<LayerSpec> specs = layers_of(parameters);
  std::vector<LayerTiming> timings;
  Shape shape{batch, image_size, image_size, 3};
  std::string name;
  bool behind_relu = false;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Shape input = shape;
    shape = specs[i].output_shape(input);
    const bool is_pool = specs[i].kind == LayerKind::max_pool2d;
    if (!specs[i].has_parameters() && !is_pool) continue;
    name = is_pool ? name + "+pool" : specs[i].name;
    LoneLayer layer(backend, specs[i], parameters, input, precision, behind_relu, i + 1 == specs.size());
    if (specs[i].has_parameters()) behind_relu = specs[i].epilogue == Epilogue::relu;
    const std::string line = fmt::format("{}, batch {}, {}", label, batch, name);
    LayerTiming timing{.name = name,
                       .bytes = layer.bytes(),
                       .flops = layer.flops(),
                       .precision = layer.precision(),
                       .warm = {},
                       .cold = {}};
    timing.warm = time_warm([&] { return layer.once(); }, seconds, line);
    if (layer.go_beyond(backend.bytes_that_empty_caches()))
      timing.cold = time_warm([&] { return layer.once(); }, seconds, line + ", cold");
    timings.push_back(std::move(timing));
  }
  return timings;
}

LayerBound bound_of(double bytes, double flops, Precision precision, const Ceilings& ceilings) {
  auto peak = ceilings.per_second.find(precision);
  if (peak == ceilings.per_second.end()) peak = ceilings.per_second.find(Precision::float32);
  return {.products = 1e3 * flops / peak->second, .bytes = 1e3 * bytes / ceilings.bytes_per_second};
}

LayerBound bound_of(const LayerTiming& timing, const Ceilings& ceilings) {
  return bound_of(timing.bytes, timing.flops, timing.precision, ceilings);
}

std::string layers_table(const std::vector<LayerTiming>& timings, const Ceilings& ceilings) {
  std::string table = fmt::format("  {:<18} {:<9} {:>10} {:>10} {:>10} {:>9} {:>9}\n", "layer alone", "precision",
                                  "warm ms", "cold ms", "bound ms", "of warm", "bound by");
  double warm = 0, bounds = 0;
  for (const LayerTiming& timing : timings) {
    const LayerBound bound = bound_of(timing, ceilings);
    table += fmt::format("  {:<18} {:<9} {:>10.4f} {:>10} {:>10.4f} {:>7.0f} % {:>9}\n", timing.name,
                         to_string(timing.precision), timing.warm.median,
                         timing.cold ? fmt::format("{:.4f}", timing.cold->median) : "", bound.ms(),
                         100 * bound.ms() / timing.warm.median, bound.by());
    warm += timing.warm.median;
    bounds += bound.ms();
  }
  return table + fmt::format("  {:<18} {:<9} {:>10.4f} {:>10} {:>10.4f} {:>7.0f} %\n", "sum", "", warm, "", bounds,
                             100 * bounds / warm);
}

nlohmann::json to_json(const LayerTiming& timing, const Ceilings& ceilings) {
  const LayerBound bound = bound_of(timing, ceilings);
  return {{"name", timing.name},
          {"precision", to_string(timing.precision)},
          {"bytes", timing.bytes},
          {"flops", timing.flops},
          {"bound_ms", bound.ms()},
          {"bound_by", bound.by()},
          {"percent_of_bound", 100 * bound.ms() / timing.warm.median},
          {"warm_samples_ms", timing.warm.samples},
          {"cold_samples_ms", timing.cold ? nlohmann::json(timing.cold->samples) : nlohmann::json()},
          {"warm_ms", timing.warm.median},
          {"cold_ms", timing.cold ? nlohmann::json(timing.cold->median) : nlohmann::json()}};
}

}  // namespace nibblenet::tools
