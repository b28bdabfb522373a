#include "engine/quant/scheme.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <ranges>
#include <string_view>
#include <vector>

#include "engine/quant/text.h"

namespace nibblenet {
namespace {

constexpr Granularity per_channel{Granularity::Kind::channel};
constexpr Granularity per_row{Granularity::Kind::row};
constexpr Granularity per_block_of_64{Granularity::Kind::block, 64};
constexpr Granularity by_magnitude{Granularity::Kind::sorted};

constexpr auto absolute = ScaleSign::absolute;
constexpr auto signed_max = ScaleSign::signed_max;

// In the order of the enum: traits_of() indexes it.
constexpr std::array<MethodTraits, 10> methods{{
    {Method::linear, "linear", 2, 8, per_channel, absolute, false, false,
     "integers in equal steps, symmetric around 0; with zero-point: affine over [min, max]"},
    {Method::fp8_e4m3, "fp8-e4m3", 8, 8, per_row, absolute, false, false,
     "OCP FP8 with 4 exponent and 3 mantissa bits"},
    {Method::fp8_e5m2, "fp8-e5m2", 8, 8, per_row, absolute, false, false,
     "OCP FP8 with 5 exponent and 2 mantissa bits"},
    {Method::dynamic_tree, "dynamic-tree", 3, 8, per_row, signed_max, false, false,
     "sign, unary decimal exponent, linear fraction (Dettmers 2015)"},
    {Method::stable_embedding, "stable-embedding", 3, 8, by_magnitude, signed_max, true, false,
     "dynamic tree over magnitude-sorted blocks (the original notebooks' stable embedding)"},
    {Method::stable_embedding_fp8, "stable-embedding-fp8", 8, 8, by_magnitude, absolute, true, false,
     "FP8 E4M3 over magnitude-sorted blocks (the original notebooks' stable embedding)"},
    {Method::nf4, "nf4", 4, 4, per_block_of_64, absolute, false, false,
     "NormalFloat-4, quantiles of a normal distribution"},
    {Method::fp4, "fp4", 4, 4, per_block_of_64, absolute, false, false,
     "OCP FP4 with 2 exponent bits and 1 mantissa bit"},
    {Method::kmeans, "kmeans", 2, 8, per_channel, absolute, false, true,
     "values trained on the weights (k-means), one codebook a tensor, in the file (Han 2016)"},
    {Method::trellis, "trellis", 1, 4, per_channel, absolute, false, false,
     "strings of bits along the output channels, also of 0.5, 0.75, 1.25 and 1.5 bits a weight (QTIP)"},
}};

constexpr std::array trellis_quarters = {2, 3, 4, 5, 6, 8, 12, 16};

std::string bits_text(const MethodTraits& traits) {
  if (traits.method == Method::trellis) return "0.5, 0.75, 1, 1.25, 1.5, 2, 3 and 4 bits";
  return traits.min_bits == traits.max_bits ? fmt::format("{} bits only", traits.min_bits)
                                            : fmt::format("{} to {} bits", traits.min_bits, traits.max_bits);
}

void validate_granularity(const MethodTraits& traits, const Granularity& granularity) {
  const bool is_sorted = granularity.kind == Granularity::Kind::sorted;
  if (traits.sorted && !is_sorted)
    fail<UsageError>("{} does not support the granularity {}; supported: sorted, sorted:B", traits.name,
                     to_string(granularity));
  if (!traits.sorted && is_sorted)
    fail<UsageError>(
        "{} does not support the granularity {}; supported: tensor, channel, row, block:N, tile:RxC "
        "(sorted belongs to stable-embedding and stable-embedding-fp8)",
        traits.name, to_string(granularity));
  const bool has_rows = granularity.kind == Granularity::Kind::block || granularity.kind == Granularity::Kind::tile;
  const bool has_columns = granularity.kind == Granularity::Kind::tile;
  if (granularity.rows < (has_rows ? 1 : 0) || granularity.columns < (has_columns ? 1 : 0))
    fail<UsageError>("granularity {}: sizes must be at least 1", to_string(granularity));
}

/// Takes a granularity from `parts`: "block", "tile" and "sorted" may have ":SIZE" behind them.
std::string take_granularity(std::span<const std::string_view>& parts) {
  std::string text(parts[0]);
  const bool size_follows =
      text == "block" || text == "tile" || (text == "sorted" && parts.size() > 1 && parse_integer(parts[1]));
  parts = parts.subspan(1);
  if (size_follows && !parts.empty()) {
    text += fmt::format(":{}", parts[0]);
    parts = parts.subspan(1);
  }
  return text;
}

/// "1.25" as quarters of a bit; nothing for what is no multiple of a quarter.
std::optional<int> parse_quarters(std::string_view text) {
  const auto bits = parse_number<double>(text);
  if (!bits || !(*bits > 0 && *bits < 100) || *bits * 4 != std::floor(*bits * 4)) return std::nullopt;
  return static_cast<int>(*bits * 4);
}

bool is_scale_option(std::string_view part) {
  return part == "f16" || part == "f32" || part == "absolute" || part == "signed" || part == "zero-point" ||
         part == "rotated";
}

}  // namespace

std::span<const MethodTraits> method_table() { return methods; }

std::span<const MethodTraits> scalar_methods() { return method_table().first(methods.size() - 1); }

const MethodTraits& traits_of(Method method) { return methods.at(static_cast<size_t>(method)); }

Method parse_method(std::string_view name) {
  for (const MethodTraits& traits : methods)
    if (traits.name == name) return traits.method;
  fail<UsageError>("unknown method '{}'; supported: {}", name,
                   fmt::join(std::views::transform(methods, &MethodTraits::name), ", "));
}

std::string_view to_string(ScaleType type) { return type == ScaleType::f16 ? "f16" : "f32"; }

std::string_view to_string(ScaleSign sign) { return sign == ScaleSign::signed_max ? "signed" : "absolute"; }

ScaleType parse_scale_type(std::string_view text) {
  if (text == "f32") return ScaleType::f32;
  if (text == "f16") return ScaleType::f16;
  fail<UsageError>("unknown scale type '{}'; supported: f32, f16", text);
}

ScaleSign parse_scale_sign(std::string_view text) {
  if (text == "absolute") return ScaleSign::absolute;
  if (text == "signed") return ScaleSign::signed_max;
  fail<UsageError>("unknown scale sign '{}'; supported: absolute, signed", text);
}

Scheme default_scheme(Method method, int bits) {
  const MethodTraits& traits = traits_of(method);
  return {.method = method, .bits = bits, .granularity = traits.default_granularity, .sign = traits.default_sign};
}

std::vector<Scheme> schemes_of_every_width(Method method) {
  const MethodTraits& traits = traits_of(method);
  std::vector<Scheme> schemes;
  if (method == Method::trellis)
    for (const int quarters : trellis_quarters) schemes.push_back(with_bits(default_scheme(method, 1), quarters / 4.0));
  else
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) schemes.push_back(default_scheme(method, bits));
  return schemes;
}

Scheme with_bits(Scheme scheme, double bits) {
  const double quarters = bits * 4;
  if (!(quarters > 0 && quarters < 400) || quarters != std::floor(quarters))
    fail<UsageError>("{} does not support {} bits; supported: {}", traits_of(scheme.method).name, bits,
                     bits_text(traits_of(scheme.method)));
  scheme.bits = static_cast<int>(quarters) / 4;
  scheme.more_quarters = static_cast<int>(quarters) % 4;
  validate(scheme);
  return scheme;
}

void validate(const Scheme& scheme) {
  const MethodTraits& traits = traits_of(scheme.method);
  const bool has_width =
      scheme.is_trellis()
          ? std::ranges::find(trellis_quarters, scheme.quarters()) != trellis_quarters.end()
          : scheme.bits >= traits.min_bits && scheme.bits <= traits.max_bits && scheme.more_quarters == 0;
  if (!has_width)
    fail<UsageError>("{} does not support {} bits; supported: {}", traits.name, bits_text(scheme), bits_text(traits));
  validate_granularity(traits, scheme.granularity);
  if (scheme.is_trellis() && scheme.granularity != per_channel)
    fail<UsageError>("{} does not support the granularity {}; supported: channel", traits.name,
                     to_string(scheme.granularity));
  if (scheme.is_trellis() && scheme.sign == signed_max)
    fail<UsageError>("{} does not support the scale sign signed; supported: absolute", traits.name);
  if (scheme.zero_point && scheme.method != Method::linear)
    fail<UsageError>("{} does not support zero-point; supported by: linear", traits.name);
  if (scheme.zero_point && scheme.sign == ScaleSign::signed_max)
    fail<UsageError>("zero-point does not support the scale sign signed (its scale is max - min); supported: absolute");
  if (scheme.is_rotated() && traits.sorted)
    fail<UsageError>(
        "{} does not support rotated; supported by all methods but stable-embedding and "
        "stable-embedding-fp8",
        traits.name);
}

std::string bits_text(const Scheme& scheme) { return fmt::format("{}", scheme.bits_per_code()); }

std::string to_string(const Scheme& scheme) {
  const MethodTraits& traits = traits_of(scheme.method);
  std::string text = fmt::format("{}:{}:{}", traits.name, bits_text(scheme), to_string(scheme.granularity));
  if (scheme.scale != ScaleType::f32) text += fmt::format(":{}", to_string(scheme.scale));
  if (scheme.sign != traits.default_sign) text += fmt::format(":{}", to_string(scheme.sign));
  if (scheme.zero_point) text += ":zero-point";
  if (scheme.is_rotated()) text += ":rotated";
  if (scheme.rotated > 1) text += fmt::format(":{}", scheme.rotated);
  return text;
}

Scheme parse_scheme(std::string_view text) {
  const std::vector<std::string_view> all = split(text, ':');
  std::span<const std::string_view> parts(all);
  const MethodTraits& traits = traits_of(parse_method(parts[0]));
  parts = parts.subspan(1);
  Scheme scheme = default_scheme(traits.method, traits.min_bits <= 4 && 4 <= traits.max_bits ? 4 : traits.max_bits);

  if (!parts.empty()) {
    const std::optional<int> quarters = scheme.is_trellis() ? parse_quarters(parts[0]) : std::nullopt;
    if (quarters) {
      scheme.bits = *quarters / 4;
      scheme.more_quarters = *quarters % 4;
      parts = parts.subspan(1);
    } else if (const std::optional<int64_t> bits = parse_integer(parts[0])) {
      // Clamped only to fit an int: 0 and 99 are refused by every method.
      scheme.bits = static_cast<int>(std::min<int64_t>(*bits, 99));
      parts = parts.subspan(1);
    }
  }
  if (!parts.empty() && !is_scale_option(parts[0])) scheme.granularity = parse_granularity(take_granularity(parts));

  const auto take_if = [&parts](auto... options) {
    if (parts.empty() || ((parts[0] != options) && ...)) return std::string_view{};
    const std::string_view taken = parts[0];
    parts = parts.subspan(1);
    return taken;
  };
  if (const auto part = take_if("f16", "f32"); !part.empty()) scheme.scale = parse_scale_type(part);
  if (const auto part = take_if("absolute", "signed"); !part.empty()) scheme.sign = parse_scale_sign(part);
  if (!take_if("zero-point").empty()) scheme.zero_point = true;
  if (!take_if("rotated").empty()) {
    const std::optional<int64_t> inputs = parts.empty() ? std::nullopt : parse_integer(parts[0]);
    if (inputs) parts = parts.subspan(1);
    scheme.rotated = inputs.value_or(1);
    if (scheme.rotated < 1) fail<UsageError>("scheme '{}': rotated:N needs an N of at least 1", text);
  }
  if (!parts.empty())
    fail<UsageError>(
        "scheme '{}': '{}' is not expected there; the form is "
        "METHOD[:BITS][:GRANULARITY][:f16|f32][:absolute|signed][:zero-point][:rotated[:N]]",
        text, parts[0]);
  validate(scheme);
  return scheme;
}

}  // namespace nibblenet
