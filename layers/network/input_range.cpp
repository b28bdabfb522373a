#include "layers/network/input_range.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>

namespace nibblenet {
namespace {

constexpr int all_steps = 255, few_steps = 127;

std::string key_of(std::string_view prefix, std::string_view layer) { return std::string(prefix) + std::string(layer); }

/// The steps of a layer's input: as an entry says, or all.
int steps_of(const std::map<std::string, std::string>& metadata, std::string_view layer) {
  const auto entry = metadata.find(key_of(input_steps_key, layer));
  if (entry == metadata.end()) return all_steps;
  for (const int steps : {few_steps, all_steps})
    if (entry->second == std::to_string(steps)) return steps;
  fail<FormatError>("metadata {}: '{}' is neither {} nor {}", entry->first, entry->second, few_steps, all_steps);
}

}  // namespace

InputRange input_range(const std::map<std::string, std::string>& metadata, std::string_view layer, bool behind_relu) {
  InputRange range{.largest = 0, .is_signed = !behind_relu, .steps = steps_of(metadata, layer)};
  const auto entry = metadata.find(key_of(input_range_key, layer));
  if (entry == metadata.end()) return range;
  const std::string& text = entry->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), range.largest);
  if (error != std::errc() || end != text.data() + text.size() || !std::isnormal(range.largest) || range.largest < 0)
    fail<FormatError>("metadata {}: '{}' is no positive number", entry->first, text);
  return range;
}

void set_input_range(std::map<std::string, std::string>& metadata, std::string_view layer, float largest) {
  metadata[key_of(input_range_key, layer)] =
      fmt::format("{}", largest);  // the shortest digits that give the same float
}

void set_input_steps(std::map<std::string, std::string>& metadata, std::string_view layer, int steps) {
  if (steps == all_steps)
    metadata.erase(key_of(input_steps_key, layer));
  else
    metadata[key_of(input_steps_key, layer)] = std::to_string(steps);
}

}  // namespace nibblenet
