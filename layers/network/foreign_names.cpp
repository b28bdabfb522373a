#include "layers/network/foreign_names.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "engine/io/safetensors_header.h"
#include "engine/quant/text.h"
#include "layers/network/network_spec.h"

namespace nibblenet {
namespace {

/// Components that DataParallel, torch.compile, FSDP and DeepSpeed put into names.
constexpr std::array<std::string_view, 5> wrappers = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module",
                                                      "_checkpoint_wrapped_module"};

/// The parts of a name: "backbone." and "features.0.weight" of "backbone.features.module.0.weight".
struct Name {
  std::string prefix;     ///< without wrappers
  std::string in_file;    ///< the prefix in the file, with wrappers, without its last dot
  std::string parameter;  ///< empty when the name is of no network
};

/// First components of all networks' layers: "features", "classifier".
std::set<std::string_view> stems() {
  std::set<std::string_view> found;
  for (const NetworkSpec& network : networks())
    for (const LayerRow& row : network.layers)
      if (has_parameters(row.kind)) found.insert(row.name.substr(0, row.name.find('.')));
  return found;
}

Name taken_apart(std::string_view text, const std::set<std::string_view>& stems) {
  constexpr size_t longest = 3;  // stem, number, part
  Name name;
  std::vector<std::string_view> rest;
  size_t at = 0;
  for (size_t begin = 0; begin <= text.size(); begin = at + 1) {
    at = std::min(text.find('.', begin), text.size());
    const std::string_view component = text.substr(begin, at - begin);
    if (std::ranges::find(wrappers, component) != wrappers.end()) continue;
    if (rest.empty() && !stems.contains(component)) {
      name.prefix += std::string(component) + ".";
      continue;
    }
    if (rest.empty()) name.in_file = text.substr(0, begin == 0 ? 0 : begin - 1);
    rest.push_back(component);
  }
  if (rest.size() == longest) name.parameter = fmt::format("{}.{}.{}", rest[0], rest[1], rest[2]);
  return name;
}

/// Whether a prefix is one of averaged weights: "model_ema.", "ema.", "swa_model.".
bool is_averaged(const std::string& prefix) {
  for (const std::string_view component : split(prefix, '.'))
    for (const std::string_view word : split(component, '_'))
      if (word == "ema" || word == "swa" || word == "averaged") return true;
  return false;
}

}  // namespace

std::vector<std::string> adopt_names(StateDict& dict) {
  const std::set<std::string_view> known = stems();
  std::vector<Name> names;
  std::map<std::string, std::string> prefixes;          // Name::in_file by Name::prefix
  std::map<std::string, std::set<std::string>> owners;  // the prefixes of each parameter
  for (const Parameter& parameter : dict.parameters) {
    names.push_back(taken_apart(parameter.name, known));
    if (names.back().parameter.empty()) continue;
    prefixes.emplace(names.back().prefix, names.back().in_file);
    owners[names.back().parameter].insert(names.back().prefix);
  }
  // Parts of one network may have different prefixes. Two prefixes with the same parameter are two
  // networks.
  std::set<std::string> rivals;
  for (const auto& [parameter, of] : owners)
    if (of.size() > 1) rivals.insert(of.begin(), of.end());
  std::vector<std::string> notes, plain;
  std::set<std::string> left;
  for (const std::string& prefix : rivals) {
    if (is_averaged(prefix))
      left.insert(prefix);
    else
      plain.push_back(prefixes[prefix]);
  }
  if (rivals.size() > left.size() + 1 || (!rivals.empty() && plain.empty()))
    fail<FormatError>("it holds several networks, under {} and {}: choose one with --key NAME",
                      in_quotes(prefixes[*rivals.begin()]), in_quotes(prefixes[*rivals.rbegin()]));
  for (const std::string& prefix : left)
    notes.push_back(fmt::format("takes the weights {}, not the averaged ones under {}: --key {} takes those",
                                plain[0].empty() ? "without a prefix" : "under " + in_quotes(plain[0]),
                                in_quotes(prefixes[prefix]), prefixes[prefix]));
  for (const auto& [prefix, in_file] : prefixes)
    if (is_averaged(prefix) && !left.contains(prefix))
      notes.push_back(fmt::format("takes the averaged weights under {}", in_quotes(in_file)));
  std::vector<Parameter> kept;
  std::set<std::string> taken;
  for (size_t i = 0; i < names.size(); ++i) {
    Parameter& parameter = dict.parameters[i];
    if (left.contains(names[i].prefix)) continue;
    if (!names[i].parameter.empty()) {
      if (!taken.insert(names[i].parameter).second)
        fail<FormatError>("{} and another tensor are both {}", in_quotes(parameter.name), names[i].parameter);
      parameter.name = std::move(names[i].parameter);
    }
    kept.push_back(std::move(parameter));
  }
  dict.parameters = std::move(kept);
  return notes;
}

}  // namespace nibblenet
