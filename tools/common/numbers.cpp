#include "tools/common/numbers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/quant/text.h"

namespace nibblenet::tools {
namespace {

template <class T>
bool is_number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const std::optional<T> value = parse_number<T>(text);
  if constexpr (std::is_floating_point_v<T>) return value && std::isfinite(*value);
  return value.has_value();
}

std::string expect(bool valid, const std::string& text, std::string_view what) {
  return valid ? "" : fmt::format("{} is not {}", text, what);
}

}  // namespace

void check_numbers(CLI::App& app) {
  constexpr std::array whole = {"INT", "K", "N"};
  constexpr std::array real = {"FLOAT", "SECONDS", "X", "MB", "POINTS", "FRACTION", "LAMBDA"};
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name().substr(0, option->get_type_name().find(':'));
    if (type == "UINT")
      option->check([](const std::string& text) {
        return expect(is_number<uint64_t>(text), text, "a whole number from 0 to 2^64 - 1");
      });
    else if (std::ranges::find(whole, type) != whole.end())
      option->check([](const std::string& text) {
        return expect(is_number<int64_t>(text), text, "a whole number from -2^63 to 2^63 - 1");
      });
    else if (std::ranges::find(real, type) != real.end())
      option->check([](const std::string& text) { return expect(is_number<double>(text), text, "a finite number"); });
  }
}

}  // namespace nibblenet::tools
