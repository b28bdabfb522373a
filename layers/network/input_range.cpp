#include "layers/network/input_range.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>

namespace nibblenet {
namespace {

std::string key_of(std::string_view layer) { return std::string(input_range_key) + std::string(layer); }

}  // namespace

InputRange input_range(const std::map<std::string, std::string>& metadata, std::string_view layer, bool behind_relu) {
  InputRange range{.largest = 0, .is_signed = !behind_relu};
  const auto entry = metadata.find(key_of(layer));
  if (entry == metadata.end()) return range;
  const std::string& text = entry->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), range.largest);
  if (error != std::errc() || end != text.data() + text.size() || !std::isnormal(range.largest) || range.largest < 0)
    fail<FormatError>("metadata {}: '{}' is no positive number", entry->first, text);
  return range;
}

void set_input_range(std::map<std::string, std::string>& metadata, std::string_view layer, float largest) {
  metadata[key_of(layer)] = fmt::format("{}", largest);  // the shortest digits that give the same float
}

}  // namespace nibblenet
