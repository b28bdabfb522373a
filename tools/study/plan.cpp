#include "tools/study/plan.h"

#include <algorithm>
#include <array>
#include <map>

#include "engine/quant/text.h"

namespace nibblenet::tools {
namespace {

std::vector<SweepScheme> parse_all(std::initializer_list<std::string_view> texts) {
  std::vector<SweepScheme> schemes;
  for (const std::string_view text : texts) schemes.push_back(parse_sweep_scheme(text));
  return schemes;
}

void add_with_counterparts(std::vector<SweepScheme>& schemes, const SimulatedScheme& simulated) {
  schemes.emplace_back(simulated);
  for (const Scheme& scheme : counterparts(simulated)) schemes.emplace_back(scheme);
}

void add_once(std::vector<SweepScheme>& schemes, const SweepScheme& scheme) {
  if (std::ranges::find(schemes, scheme) == schemes.end()) schemes.push_back(scheme);
}

/// Every simulation at every width that it claims, the widest first, as the notebooks go.
template <class Use>
void for_each_simulation(Use use) {
  for (const SimulationTraits& traits : simulation_table())
    for (int bits = traits.max_bits; bits >= traits.min_bits; --bits) {
      SimulatedScheme scheme{};
      scheme.simulation = traits.simulation;
      scheme.bits = bits;
      use(scheme);
    }
}

std::vector<SweepScheme> notebook_schemes() {
  std::vector<SweepScheme> schemes;
  for_each_simulation([&](const SimulatedScheme& simulated) {
    add_with_counterparts(schemes, simulated);
    // After row-wise linear: codes that finish it, and those that the notebooks would have needed.
    if (simulated.simulation == Simulation::linear_row)
      for (const SweepScheme& scheme : parse_all({"linear:8:channel", "linear:8:tile:8x8"})) schemes.push_back(scheme);
  });
  return schemes;
}

/// Scales of asymmetric codebooks are signed; the notebooks' absolute maxima are there for
/// comparison, by row only.
std::vector<SweepScheme> full_schemes() {
  std::vector<SweepScheme> schemes = notebook_schemes();
  constexpr std::array<std::string_view, 5> granularities = {"tensor", "channel", "row", "block:64", "tile:8x8"};
  for (const MethodTraits& traits : method_table())
    for (int bits = traits.max_bits; bits >= traits.min_bits; --bits) {
      Scheme scheme = default_scheme(traits.method, bits);
      if (traits.sorted || scheme.is_trellis()) {  // they have one granularity
        add_once(schemes, scheme);
        continue;
      }
      for (const std::string_view granularity : granularities) {
        scheme.granularity = parse_granularity(granularity);
        add_once(schemes, scheme);
      }
      if (traits.method != Method::linear) continue;
      scheme.zero_point = true;
      for (const std::string_view granularity : {"channel", "block:64"}) {
        scheme.granularity = parse_granularity(granularity);
        add_once(schemes, scheme);
      }
    }
  return schemes;
}

/// Recipes beyond the defaults, with a network's patterns of layers. Mixed widths: the large layers
/// hold most of the weights and bear the narrowest codes. Then scales in deviations, which suit
/// entropy coding: shorter ones for convolutions, without and with a weight on the bits that codes
/// take.
constexpr std::array<std::string_view, 7> other_frontier_recipes = {
    "pack --bits 4 --calibrated --layer {large}=kmeans:2",
    "pack --bits 2 --calibrated",
    "pack --method linear --bits 6 --calibrated --range step:1 --range {convolutions}=step:0.5",
    "pack --method linear --bits 6 --calibrated --range step:2 --range {convolutions}=step:1",
    "pack --method linear --bits 6 --calibrated --range step:1.4 --range {convolutions}=step:0.7 --rate-weight 1.4",
    "pack --method linear --bits 5 --calibrated --range step:2.8 --range {convolutions}=step:0.5 --rate-weight 1.4",
    "pack --method linear --bits 5 --calibrated --range step:4 --range {convolutions}=step:0.7 --rate-weight 1.4",
};

/// pack's own defaults at every width, with a calibration where it pays, then the other recipes.
std::vector<SweepScheme> frontier_schemes(const NetworkSpec& network) {
  std::vector<SweepScheme> schemes;
  for (int bits = 8; bits >= 2; --bits) schemes.emplace_back(parse_recipe(fmt::format("pack --bits {}", bits)));
  for (int bits = 8; bits >= 3; --bits)
    schemes.emplace_back(parse_recipe(fmt::format("pack --bits {} --calibrated", bits)));
  for (const std::string_view recipe : other_frontier_recipes)
    schemes.emplace_back(parse_recipe(fmt::format(fmt::runtime(recipe), fmt::arg("large", network.large),
                                                  fmt::arg("convolutions", network.convolutions))));
  return schemes;
}

}  // namespace

std::string to_string(const SweepScheme& scheme) {
  return std::visit([](const auto& each) -> std::string { return to_string(each); }, scheme);
}

SweepScheme parse_sweep_scheme(std::string_view text) {
  if (names_recipe(text)) return parse_recipe(text);
  if (names_model_file(text)) return parse_model_file(text);
  if (names_simulation(text)) return parse_simulated_scheme(text);
  return parse_scheme(text);
}

std::vector<SweepScheme> parse_scheme_lists(std::span<const std::string> lists) {
  std::vector<SweepScheme> schemes;
  for (const std::string& list : lists)
    for (std::string_view text : split(list, ',')) {
      text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
      text = text.substr(0, text.find_last_not_of(' ') + 1);
      if (text.empty()) fail<UsageError>("--schemes {}: there is an empty name between commas", list);
      if (names_model_file(text)) fail<UsageError>("--schemes {}: files are given by --models", text);
      add_once(schemes, parse_sweep_scheme(text));
    }
  return schemes;
}

std::vector<SweepScheme> preset_schemes(std::string_view name, const NetworkSpec& network) {
  if (name == "notebooks") return notebook_schemes();
  if (name == "full") return full_schemes();
  if (name == "frontier") return frontier_schemes(network);
  fail<UsageError>("unknown preset '{}'; supported: notebooks, full, frontier", name);
}

const SimulationForm& form_of(Simulation simulation) {
  static const std::map<Simulation, SimulationForm> forms = {
      {Simulation::linear, {"tensor", false, {"linear:{}:tensor"}}},
      {Simulation::linear_row, {"row", false, {"linear:{}:row"}}},
      {Simulation::fp8, {"row", true, {"fp8-e4m3:{}:row"}}},
      {Simulation::dynamic_tree, {"row", true, {"dynamic-tree:{}:row:absolute", "dynamic-tree:{}:row:signed"}}},
      {Simulation::stable_embedding,
       {"sorted", true, {"stable-embedding:{}:sorted:absolute", "stable-embedding:{}:sorted:signed"}}}};
  return forms.at(simulation);
}

std::vector<Scheme> counterparts(const SimulatedScheme& scheme) {
  std::vector<Scheme> schemes;
  for (const std::string& form : form_of(scheme.simulation).counterparts)
    schemes.push_back(parse_scheme(fmt::format(fmt::runtime(form), scheme.bits)));
  return schemes;
}

EstimatedSize claimed_size(const SimulatedScheme& scheme, const Shape& shape) {
  const std::string_view groups = form_of(scheme.simulation).groups;
  const int rank = shape.rank();
  int64_t maxima = 1;
  if (groups == "row") maxima = shape.elements() / shape[rank - 1];
  // Blocks are as long as a matrix, or a kernel's slice, has rows.
  if (groups == "sorted") maxima = shape.elements() / shape[rank - 2];
  return {.codes = static_cast<double>(shape.elements()) * scheme.bits / 8,
          .scales = 4.0 * static_cast<double>(maxima)};
}

std::string model_file_name(const Scheme& scheme) {
  const Scheme notebooks{.method = Method::dynamic_tree,
                         .bits = scheme.bits,
                         .granularity = {Granularity::Kind::row},
                         .sign = ScaleSign::absolute};
  if (scheme == notebooks) return fmt::format("dt_quantized_model_bl_{}.safetensors", scheme.bits);
  std::string name = nibblenet::to_string(scheme);
  std::ranges::replace(name, ':', '_');
  return name + ".safetensors";
}

std::string model_file_name(const Recipe& recipe) {
  std::string name;
  for (const char c : recipe.text) {
    const bool kept = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.';
    if (kept)
      name += c;
    else if (!name.ends_with('_'))
      name += '_';
  }
  return name + ".safetensors";
}

std::string counts_file_name(int bits) { return fmt::format("dt_counts_bl_{}.json", bits); }

}  // namespace nibblenet::tools
