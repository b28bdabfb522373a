#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace nibblenet {

/// Parses all of `text` as a number; nothing when it is something else or too large.
template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Parses all of `text` as a number without sign; nothing when it is something else or too large.
inline std::optional<int64_t> parse_integer(std::string_view text) {
  return text.starts_with('-') ? std::nullopt : parse_number<int64_t>(text);
}

/// Splits a text at its separators. An empty text gives one empty part.
inline std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end = text.find(separator); end != std::string_view::npos; end = text.find(separator)) {
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

}  // namespace nibblenet
