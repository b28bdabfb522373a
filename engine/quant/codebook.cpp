#include "engine/quant/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/quant/trellis.h"

namespace nibblenet {
namespace {

/// A value in use and the code that stands for it.
struct Entry {
  float value = 0;
  uint8_t code = 0;
};

/// Sorts the entries and derives everything else. Of two equally near values, the one with
/// `is_even(entry)` wins, else the lower one.
template <class IsEven>
Codebook assemble(std::vector<Entry> entries, int bits, float scale_to, IsEven is_even) {
  std::ranges::stable_sort(entries, {}, &Entry::value);
  Codebook codebook;
  codebook.bits = bits;
  codebook.scale_to = scale_to;
  codebook.count = static_cast<int>(entries.size());
  codebook.thresholds.fill(std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < entries.size(); ++i) {
    codebook.values[entries[i].code] = entries[i].value;
    codebook.ordered_codes[i] = entries[i].code;
    if (i == 0) continue;
    const double midpoint = (static_cast<double>(entries[i - 1].value) + static_cast<double>(entries[i].value)) / 2;
    const float threshold = static_cast<float>(midpoint);
    codebook.thresholds[i - 1] = threshold;
    const bool is_tie = static_cast<double>(threshold) == midpoint;
    codebook.tie_up[i - 1] = is_tie ? is_even(entries[i]) : static_cast<double>(threshold) > midpoint;
  }
  codebook.zero_code = encode(codebook, 0.0F);
  return codebook;
}

constexpr auto lower_wins = [](const Entry&) { return false; };
constexpr auto even_code = [](const Entry& entry) { return entry.code % 2 == 0; };
constexpr auto even_value = [](const Entry& entry) { return std::fmod(entry.value, 2.0F) == 0.0F; };

/// code = value + m. The last code, 2^n - 1, stays unused: the range is symmetric.
Codebook make_linear(int bits) {
  const int m = (1 << (bits - 1)) - 1;
  std::vector<Entry> entries;
  for (int value = -m; value <= m; ++value)
    entries.push_back({static_cast<float>(value), static_cast<uint8_t>(value + m)});
  return assemble(std::move(entries), bits, static_cast<float>(m), even_value);
}

/// A small floating-point format whose codes are sign, exponent and mantissa bits, from high to
/// low:
///   E4M3: s eeee mmm    E5M2: s eeeee mm    E2M1: s ee m
struct SmallFloat {
  int bits;
  int mantissa_bits;
  int bias;
  int largest;  ///< code of the largest finite value; those above, without the sign, are Inf and NaN

  float magnitude(int code) const {
    const int exponent = code >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    if (exponent == 0) return std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
    return std::ldexp(static_cast<float>((1 << mantissa_bits) + mantissa), exponent - bias - mantissa_bits);
  }
};

constexpr SmallFloat e4m3{8, 3, 7, 0x7E};
constexpr SmallFloat e5m2{8, 2, 15, 0x7B};
constexpr SmallFloat e2m1{4, 1, 1, 0x7};

template <class IsEven>
Codebook make_small_float(const SmallFloat& format, IsEven is_even) {
  const int sign = 1 << (format.bits - 1);
  std::vector<Entry> entries{{0.0F, 0}};
  for (int code = 1; code <= format.largest; ++code) {
    entries.push_back({format.magnitude(code), static_cast<uint8_t>(code)});
    entries.push_back({-format.magnitude(code), static_cast<uint8_t>(sign | code)});
  }
  Codebook codebook = assemble(std::move(entries), format.bits, format.magnitude(format.largest), is_even);
  // -0 is never chosen. It is here because a decoder may compute values from the bits.
  codebook.values[static_cast<size_t>(sign)] = -0.0F;
  return codebook;
}

/// For e = 0..n-2 (as decades below the top one) the c = 2^(n-2-e) midpoints of [0.1, 1] in equal
/// steps:
///   v(e, k) = 10^-e * (0.1 + 0.9 * (k + 1/2) / c)  =  (2c + 9(2k+1)) / (20 c 10^e)
/// of both signs, plus 0 and 1. Numerator and denominator are exact integers, so one division
/// rounds once.
Codebook make_dynamic_tree(int bits) {
  std::vector<float> values{0.0F, 1.0F};
  double decade = 1;
  for (int e = 0; e <= bits - 2; ++e, decade *= 10) {
    const int c = 1 << (bits - 2 - e);
    for (int k = 0; k < c; ++k) {
      const float value = static_cast<float>((2 * c + 9 * (2 * k + 1)) / (20 * c * decade));
      values.push_back(value);
      values.push_back(-value);
    }
  }
  std::ranges::sort(values);
  return make_codebook(values, bits, 1.0F);
}

constexpr std::array<float, 16> nf4_values = {-1.0F,
                                              -0.6961928009986877F,
                                              -0.5250730514526367F,
                                              -0.39491748809814453F,
                                              -0.28444138169288635F,
                                              -0.18477343022823334F,
                                              -0.09105003625154495F,
                                              0.0F,
                                              0.07958029955625534F,
                                              0.16093020141124725F,
                                              0.24611230194568634F,
                                              0.33791524171829224F,
                                              0.44070982933044434F,
                                              0.5626170039176941F,
                                              0.7229568362236023F,
                                              1.0F};

/// All values that a window may have; a "code" is a value's rank.
Codebook make_trellis_values() {
  std::vector<float> values;
  for (int value = -trellis_largest_value; value <= trellis_largest_value; ++value)
    values.push_back(static_cast<float>(value));
  return make_codebook(values, 8, trellis_scale_to);
}

}  // namespace

Codebook make_codebook(Method method, int bits) {
  if (method == Method::trellis) return make_trellis_values();  // at every rate
  validate(default_scheme(method, bits));
  switch (method) {
    case Method::linear:
      return make_linear(bits);
    case Method::fp8_e4m3:
    case Method::stable_embedding_fp8:
      return make_small_float(e4m3, even_code);
    case Method::fp8_e5m2:
      return make_small_float(e5m2, even_code);
    case Method::dynamic_tree:
    case Method::stable_embedding:
      return make_dynamic_tree(bits);
    case Method::nf4:
      return make_codebook(nf4_values, bits, 1.0F);
    case Method::fp4:
      return make_small_float(e2m1, lower_wins);
    case Method::trellis:
      break;
    case Method::kmeans:
      fail<UsageError>("{} has no fixed values: they are trained on the weights they stand for",
                       traits_of(method).name);
  }
  fail<UsageError>("no codebook for method {}", static_cast<int>(method));
}

Codebook make_codebook(std::span<const float> values, int bits, float scale_to) {
  if (bits < 1 || bits > 8) fail<UsageError>("a codebook of {} bits; supported: 1 to 8", bits);
  if (values.empty() || values.size() > size_t{1} << bits)
    fail<UsageError>("a codebook of {} values at {} bits; supported: 1 to {}", values.size(), bits, 1 << bits);
  if (!std::isfinite(scale_to) || scale_to <= 0)
    fail<UsageError>("a codebook scaled to {}; supported: finite and above 0", scale_to);
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }) || !std::ranges::is_sorted(values))
    fail<UsageError>("the values of a codebook must be finite and ascending");
  std::vector<Entry> entries;
  for (const float value : values) entries.push_back({value, static_cast<uint8_t>(entries.size())});
  return assemble(std::move(entries), bits, scale_to, lower_wins);
}

}  // namespace nibblenet
