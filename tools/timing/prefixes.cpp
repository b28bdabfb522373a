#include "tools/timing/prefixes.h"

#include <fmt/format.h>

namespace nibblenet::tools {
namespace {

/// Adds a layer with this output to what a prefix adds.
void add_layer(PrefixTiming& to, const Layer& layer, const Shape& output, Precision storage) {
  const LayerSpec& spec = layer.spec;
  if (spec.kind == LayerKind::max_pool2d) to.name += "+pool";
  if (!spec.has_parameters()) return;
  to.name += (to.name.empty() ? "" : ", ") + spec.name;
  to.bytes += static_cast<double>(layer.weight->resident().total()) +
              static_cast<double>(sizeof(float)) * static_cast<double>(layer.bias.elements());
  to.flops += 2.0 * static_cast<double>(output.elements()) * static_cast<double>(spec.weight.inner_elements());
  to.precision = layer.weight->product_precision().value_or(storage);
}

}  // namespace

std::vector<PrefixTiming> time_prefixes(TimedForward& forward, double seconds, const std::string& label) {
  const Network& network = forward.network();
  const std::vector<Layer>& layers = network.layers();
  std::vector<PrefixTiming> timings;
  const auto bytes_of_values = [&](const Shape& shape, bool last) {
    const Precision precision = last ? Precision::float32 : network.storage();
    return static_cast<double>(shape.elements()) * static_cast<double>(bytes_of(precision));
  };
  Shape shape = forward.input_shape();
  Shape begin = shape;  // the input of what the next prefix adds
  PrefixTiming next;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Shape input = shape;
    shape = layers[i].spec.output_shape(input);
    const std::unique_ptr<Recording> recording = forward.record_layers(i + 1);
    if (!recording) return {};
    const int64_t before = timings.empty() ? 0 : timings.back().operations;
    if (recording->operations() == before) {  // computed by the kernel of a layer before, or nothing to do
      if (timings.empty()) continue;
      PrefixTiming& last = timings.back();
      add_layer(last, layers[i], shape, network.storage());
      last.bytes += bytes_of_values(shape, false) - bytes_of_values(input, false);  // that output instead
      begin = shape;
      continue;
    }
    add_layer(next, layers[i], shape, network.storage());
    next.bytes += bytes_of_values(begin, false) + bytes_of_values(shape, i + 1 == layers.size());
    if (next.name.starts_with('+')) next.name = timings.back().name + next.name;
    next.operations = recording->operations();
    next.time = time_replays(*recording, seconds, fmt::format("{}, up to {}", label, next.name));
    next.marginal = next.time.median - (timings.empty() ? 0 : timings.back().time.median);
    timings.push_back(std::move(next));
    next = {};
    begin = shape;
  }
  return timings;
}

std::string prefixes_table(const std::vector<PrefixTiming>& timings, const Ceilings& ceilings) {
  std::string table = fmt::format("  {:<18} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}\n", "layers up to", "operations",
                                  "device ms", "adds ms", "bound ms", "of adds", "bound by");
  for (const PrefixTiming& timing : timings) {
    const LayerBound bound = bound_of(timing.bytes, timing.flops, timing.precision, ceilings);
    const std::string percent = timing.marginal > 0 ? fmt::format("{:.0f} %", 100 * bound.ms() / timing.marginal) : "";
    table += fmt::format("  {:<18} {:>10} {:>10.5f} {:>10.5f} {:>10.5f} {:>9} {:>9}\n", timing.name, timing.operations,
                         timing.time.median, timing.marginal, bound.ms(), percent, bound.by());
  }
  return table;
}

nlohmann::json to_json(const PrefixTiming& timing, const Ceilings& ceilings) {
  const LayerBound bound = bound_of(timing.bytes, timing.flops, timing.precision, ceilings);
  const bool adds = timing.marginal > 0;  // noise may hide a short kernel
  return {{"name", timing.name},
          {"operations", timing.operations},
          {"device", to_json(timing.time)},
          {"marginal_ms", timing.marginal},
          {"precision", to_string(timing.precision)},
          {"bytes", timing.bytes},
          {"flops", timing.flops},
          {"bound_ms", bound.ms()},
          {"bound_by", bound.by()},
          {"percent_of_bound", adds ? nlohmann::json(100 * bound.ms() / timing.marginal) : nlohmann::json()}};
}

}  // namespace nibblenet::tools
