#include "tools/timing/side.h"

#include <algorithm>

namespace nibblenet::tools {
SideSpec parse_side(const std::string& text, const std::string& device) {
  SideSpec spec{.name = text, .scheme = std::nullopt, .device = device, .precision = std::nullopt};
  std::string rest = text;
  constexpr std::string_view cudnn = "cudnn:", fold = "+fold";
  if (rest.starts_with(cudnn)) {
    rest.erase(0, cudnn.size());
    spec.device = "cudnn";
  }
  spec.folded = rest.ends_with(fold);
  if (spec.folded) rest.resize(rest.size() - fold.size());
  if (rest == "float32")
    spec.precision = Precision::float32;
  else if (rest == "float16")
    spec.precision = Precision::float16;
  else
    spec.scheme = parse_scheme(rest);
  if (spec.folded && spec.device == "cudnn") fail<UsageError>("{}: cuDNN does not fold the first convolution", text);
  return spec;
}

std::vector<std::string> default_sides(bool on_gpu, bool with_baseline) {
  std::vector<std::string> sides;  // no braced list: GCC 14 warns of an array bound in "float32"
  sides.emplace_back("float32");
  if (on_gpu) sides.emplace_back("float16");
  for (int bits = 8; bits >= 2; --bits) sides.push_back(fmt::format("linear:{}:channel", bits));
  for (const char* codebook : {"fp8-e4m3:8:channel", "nf4:4:block:64", "kmeans:4:channel", "kmeans:3:channel"})
    sides.emplace_back(codebook);
  sides.emplace_back(on_gpu ? "float16+fold" : "float32+fold");
  sides.emplace_back("linear:4:channel+fold");
  if (with_baseline)
    for (const char* baseline : {"cudnn:float32", "cudnn:float16"}) sides.emplace_back(baseline);
  return sides;
}

StateDict packed_copy(const StateDict& floats, const std::optional<Scheme>& scheme) {
  StateDict copy = copy_of(floats);
  if (!scheme) return copy;
  for (Parameter& parameter : copy.parameters)
    if (parameter.is_weight())
      parameter.value = quantize(std::as_const(parameter).values().view(), *scheme, parameter.name);
  return copy;
}

Side::Side(const SideSpec& spec, Backend& backend, const StateDict& floats, const ResampleTables& tables)
    : spec_(spec), parameters_(packed_copy(floats, spec.scheme)) {
  const Precision precision = spec.precision.value_or(backend.preferred_precision());
  network_.emplace(backend, copy_of(parameters_), precision, spec.folded ? &tables : nullptr);
}

}  // namespace nibblenet::tools
