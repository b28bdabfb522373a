#include "tools/training/scheme_options.h"

#include <fmt/ranges.h>
#include <fnmatch.h>

#include <cmath>

#include "engine/quant/hadamard.h"
#include "engine/quant/trellis.h"

namespace nibblenet::tools {
namespace {

constexpr int default_bits = 4;

/// What layers get that have fewer output channels than a trellis needs: it would be padding.
constexpr std::string_view narrow_scheme = "linear:8:channel";

/// The scheme of flags that say more than --bits.
Scheme chosen_scheme(const SchemeFlags& flags) {
  const Method method = flags.method.empty() ? Method::linear : parse_method(flags.method);
  const MethodTraits& traits = traits_of(method);
  // A method of one width needs no --bits.
  const int fallback = traits.min_bits == traits.max_bits ? traits.min_bits : default_bits;
  Scheme scheme = with_bits(default_scheme(method, fallback), flags.bits.value_or(fallback));
  if (!flags.granularity.empty()) scheme.granularity = parse_granularity(flags.granularity);
  if (!flags.scale.empty()) scheme.scale = parse_scale_type(flags.scale);
  if (flags.zero_point) {
    scheme.zero_point = true;
    scheme.sign = ScaleSign::absolute;
  }
  if (!flags.sign.empty()) scheme.sign = parse_scale_sign(flags.sign);
  scheme.rotated = flags.rotate ? 1 : 0;
  validate(scheme);
  return scheme;
}

}  // namespace

bool matches_layer(const std::string& pattern, const std::string& weight) {
  const std::string layer = weight.substr(0, weight.rfind('.'));
  return fnmatch(pattern.c_str(), layer.c_str(), 0) == 0 || fnmatch(pattern.c_str(), weight.c_str(), 0) == 0;
}

void SchemeFlags::add_to(CLI::App& app) {
  app.add_option("--bits", bits,
                 "Bits per weight, 2 to 8, and 0.5, 0.75, 1, 1.25 and 1.5 of trellis; alone it takes the scheme that "
                 "measured best (docs/schemes.md)")
      ->check(CLI::Range(0.5, 8.0))
      ->type_name("X")
      ->default_str("4");
  std::string methods = "Method:", names;
  for (const MethodTraits& traits : method_table()) {
    names += fmt::format("{}{}", names.empty() ? "" : "|", traits.name);
    methods += fmt::format("\n  {}, {}-{} bits, {}: {}", traits.name, traits.min_bits, traits.max_bits,
                           to_string(traits.default_granularity), traits.summary);
  }
  app.add_option("--method", method, methods)->type_name(names);
  app.add_option("--granularity", granularity,
                 "tensor, channel, row, block:N, tile:RxC, or sorted[:B]; default: the method's")
      ->type_name("G");
  app.add_option("--scale", scale, "Type of the stored scales: f32 (default) or f16")->type_name("f32|f16");
  app.add_option("--scale-sign", sign,
                 "absolute: the group's absolute maximum; signed: its element of largest magnitude (default where the "
                 "codebook is asymmetric)")
      ->type_name("absolute|signed");
  app.add_flag("--zero-point", zero_point, "linear only: affine codes over [min, max] with a stored zero point");
  app.add_flag("--rotate", rotate,
               "Rotate the inputs of every layer by block Hadamard matrices, for weights that are not normal: its "
               "codes then hold the rotated weights. Layers with too few input channels are left as they are");
  app.add_option("--layer", layers,
                 "Scheme of the layers a pattern names, "
                 "PATTERN=METHOD:BITS:GRANULARITY[:f16][:signed][:zero-point][:rotated]; repeatable, the last match "
                 "counts")
      ->allow_extra_args(false)  // one value each time: what follows may be MODEL
      ->type_name("SPEC");
}

bool SchemeFlags::only_bits() const {
  return method.empty() && granularity.empty() && scale.empty() && sign.empty() && !zero_point && !rotate;
}

std::vector<SchemeChoice::Override> SchemeChoice::parse(const std::vector<std::string>& texts) {
  std::vector<Override> overrides;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      fail<UsageError>("--layer {}: expected PATTERN=METHOD:BITS:GRANULARITY, like '*=linear:8:channel'", text);
    overrides.push_back({text.substr(0, equals), parse_scheme(text.substr(equals + 1))});
  }
  return overrides;
}

SchemeChoice::SchemeChoice(const SchemeFlags& flags, bool gptq, const NetworkSpec& network, const StateDict* model)
    : network_(&network),
      model_(model),
      measured_default_(flags.only_bits()),
      gptq_(gptq),
      overrides_(parse(flags.layers)),
      scheme_(measured_default_ ? Scheme{} : chosen_scheme(flags)),
      bits_(measured_default_ ? flags.bits.value_or(default_bits) : scheme_.bits_per_code()) {
  if (measured_default_ && (bits_ < 2 || bits_ != std::floor(bits_)))
    fail<UsageError>("--bits {}: expected 2 to 8, or with --method trellis 0.5, 0.75, 1, 1.25 or 1.5", bits_);
}

SchemeChoice::SchemeChoice(const Scheme& scheme, const std::vector<std::string>& layers, const StateDict& model)
    : network_(&network_of(model)),
      model_(&model),
      measured_default_(false),
      gptq_(false),
      overrides_(parse(layers)),
      scheme_(scheme),
      bits_(scheme.bits_per_code()) {}

void SchemeChoice::check(const SchemeFlags& flags) { SchemeChoice(flags, false, networks().front(), nullptr); }

Scheme SchemeChoice::operator()(const Parameter& weight) {
  const Scheme scheme = chosen(weight);
  return model_ != nullptr ? fitted(scheme, *model_, weight) : rotated_where_possible(scheme, weight.shape());
}

Scheme SchemeChoice::chosen(const Parameter& weight) {
  if (const auto scheme = overridden(weight.name)) return *scheme;
  if (scheme_.is_trellis() && weight.shape()[0] < trellis_granule) return parse_scheme(narrow_scheme);
  if (!measured_default_) return scheme_;
  return default_scheme_of(gptq_ ? *network_->calibrated_schemes : *network_->schemes, weight.shape(),
                           static_cast<int>(bits_));
}

std::optional<Scheme> SchemeChoice::overridden(const std::string& weight) {
  std::optional<Scheme> scheme;
  for (Override& each : overrides_) {
    if (!matches_layer(each.pattern, weight)) continue;
    scheme = each.scheme;
    each.used = true;
  }
  return scheme;
}

void SchemeChoice::expect_all_used() const {
  for (const Override& each : overrides_)
    if (!each.used)
      fail<UsageError>("--layer {}=…: no layer of this name; there are {}", each.pattern,
                       fmt::join(layer_names(*network_), ", "));
}

}  // namespace nibblenet::tools
