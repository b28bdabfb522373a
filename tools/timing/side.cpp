#include "tools/timing/side.h"

#include <algorithm>

namespace nibblenet::tools {
namespace {

/// Takes `suffix` off the end of a text. Returns whether it was there.
bool take_suffix(std::string& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.resize(text.size() - suffix.size());
  return true;
}

}  // namespace

SideSpec parse_side(const std::string& text, const std::string& device) {
  SideSpec spec{.name = text, .scheme = std::nullopt, .device = device, .precision = std::nullopt};
  std::string rest = text;
  constexpr std::string_view cudnn = "cudnn:", fold = "+fold";
  if (rest.starts_with(cudnn)) {
    rest.erase(0, cudnn.size());
    spec.device = "cudnn";
  }
  spec.folded = take_suffix(rest, fold);
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    if (take_suffix(rest, fmt::format("+{}", to_string(precision)))) spec.precision = precision;
  const bool is_float = rest == "float32" || rest == "float16" || rest == "bfloat16";
  if (!is_float)
    spec.scheme = parse_scheme(rest);
  else if (spec.precision)
    fail<UsageError>("{}: a precision goes behind a scheme", text);
  else
    spec.precision = parse_precision(rest);
  if (spec.folded && spec.device == "cudnn") fail<UsageError>("{}: cuDNN does not fold the first convolution", text);
  return spec;
}

std::vector<std::string> default_sides(const Backend& device, bool with_baseline) {
  const bool on_gpu = device.device_memory().has_value();
  std::vector<std::string> sides;  // no braced list: GCC 14 warns of an array bound in "float32"
  sides.emplace_back("float32");
  if (on_gpu) sides.emplace_back("float16");
  for (int bits = 8; bits >= 2; --bits) sides.push_back(fmt::format("linear:{}:channel", bits));
  for (const char* codebook : {"fp8-e4m3:8:channel", "nf4:4:block:64", "kmeans:4:channel", "kmeans:3:channel"})
    sides.emplace_back(codebook);
  sides.emplace_back(on_gpu ? "float16+fold" : "float32+fold");
  sides.emplace_back("linear:4:channel+fold");
  for (const Precision precision : {Precision::bfloat16, Precision::int8})
    if (device.has_fast(precision)) sides.push_back(fmt::format("linear:4:channel+{}", to_string(precision)));
  if (with_baseline)
    for (const char* baseline : {"cudnn:float32", "cudnn:float16"}) sides.emplace_back(baseline);
  return sides;
}

StateDict packed_copy(const StateDict& floats, const std::optional<Scheme>& scheme) {
  StateDict copy = copy_of(floats);
  if (!scheme) return copy;
  for (Parameter& parameter : copy.parameters)
    if (parameter.is_weight())
      parameter.value =
          quantize(std::as_const(parameter).values().view(), fitted(*scheme, floats, parameter), parameter.name);
  return copy;
}

Side::Side(const SideSpec& spec, Backend& backend, const StateDict& floats, const ResampleTables& tables)
    : spec_(spec), parameters_(packed_copy(floats, spec.scheme)) {
  const Precision precision = spec.precision.value_or(backend.preferred_precision());
  network_.emplace(backend, copy_of(parameters_), precision, spec.folded ? &tables : nullptr);
}

}  // namespace nibblenet::tools
