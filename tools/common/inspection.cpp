#include "tools/common/inspection.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/quant/bits.h"
#include "engine/quant/entropy.h"
#include "engine/quant/size.h"

namespace nibblenet::tools {
namespace {

/// Extremes of some values, NaN as soon as one of them is; and how many are no numbers.
struct ValueRange {
  float low = std::numeric_limits<float>::infinity();
  float high = -std::numeric_limits<float>::infinity();
  int64_t values = 0;
  int64_t nan = 0;
  int64_t infinite = 0;

  void add(const ValueRange& other) {
    const bool lost = std::isnan(low) || std::isnan(other.low);
    low = lost ? NAN : std::min(low, other.low);
    high = lost ? NAN : std::max(high, other.high);
    values += other.values;
    nan += other.nan;
    infinite += other.infinite;
  }
};

ValueRange range_of(const Parameter& parameter) {
  Tensor<float> decoded;
  TensorView<const float> values;
  if (parameter.packed()) {
    decoded = Tensor<float>(host_memory(), parameter.shape(), MemoryCategory::data);
    dequantize(parameter.packed_values(), decoded.view());
    values = std::as_const(decoded).view();
  } else {
    values = parameter.values().view();
  }
  ValueRange range;
  for (const float value : values)
    range.add({.low = value, .high = value, .values = 1, .nan = std::isnan(value), .infinite = std::isinf(value)});
  return range;
}

/// Null in JSON, which has no NaN and no infinity, where there is no such number.
void add_range(nlohmann::json& json, const ValueRange& range) {
  json["min"] = range.low;
  json["max"] = range.high;
  json["nan"] = range.nan;
  json["infinite"] = range.infinite;
}

/// How many weights have which decimal exponent: entry e counts codes whose value lies in
/// (10^-(e+1), 10^-e], the last entry the zeros. Empty for methods that are no dynamic tree.
std::vector<int64_t> exponents_of_codes(const PackedTensor& packed) {
  if (packed.scheme.method != Method::dynamic_tree && packed.scheme.method != Method::stable_embedding) return {};
  const Codebook codebook = codebook_of(packed);
  const auto exponents = static_cast<size_t>(packed.scheme.bits - 1);
  std::vector<size_t> exponent_of(256, exponents);
  for (int code = 0; code < 256; ++code) {
    const double magnitude = std::abs(static_cast<double>(codebook.values[static_cast<size_t>(code)]));
    if (magnitude > 0)
      exponent_of[static_cast<size_t>(code)] =
          std::min(exponents - 1, static_cast<size_t>(std::floor(-std::log10(magnitude) + 1e-9)));
  }
  std::vector<int64_t> counts(exponents + 1);
  for (int64_t channel = 0; channel < packed.shape[0]; ++channel) {
    const uint8_t* codes = packed.codes.data() + channel * packed.code_stride();
    for (int64_t k = 0; k < packed.shape.inner_elements(); ++k)
      ++counts[exponent_of[read_field(codes, k, packed.scheme.bits)]];
  }
  return counts;
}

double file_bits(int64_t bytes, int64_t values) {
  return values > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(values) : 0.0;
}

nlohmann::json describe(const Parameter& parameter, const ValueRange& range) {
  nlohmann::json json = {{"name", parameter.name},
                         {"shape", parameter.shape().sizes()},
                         {"scheme", parameter.stored_as},
                         {"bits_per_weight", file_bits(parameter.file_bytes, range.values)},
                         {"bytes", parameter.file_bytes}};
  add_range(json, range);
  if (!parameter.packed()) return json;
  const PackedTensor& packed = parameter.packed_values();
  SizeRow row{.weights = packed.shape.elements(), .groups = packed.groups(), .resident = resident_size(packed)};
  json["scheme"] = to_string(packed.scheme);
  json["groups"] = packed.groups();
  json["bits_per_weight"] = row.bits_per_weight();
  json["entropy"] = code_entropy(packed);
  json["compressed"] = parameter.compressed_bytes > 0;
  json["compressed_bytes"] = parameter.compressed_bytes;
  json["file_bits_per_weight"] = file_bits(parameter.file_bytes, row.weights);
  if (const auto counts = exponents_of_codes(packed); !counts.empty()) {
    json["exponent_counts"] = std::vector<int64_t>(counts.begin(), counts.end() - 1);
    json["zeros"] = counts.back();
  }
  return json;
}

}  // namespace

nlohmann::json inspection_json(const StateDict& dict) {
  nlohmann::json json;
  ValueRange all;
  int64_t bytes = 0;
  for (const Parameter& parameter : dict.parameters) {
    const ValueRange range = range_of(parameter);
    all.add(range);
    bytes += parameter.file_bytes;
    json["tensors"].push_back(describe(parameter, range));
  }
  json["total"] = {{"name", "total"},
                   {"shape", {all.values}},
                   {"scheme", ""},
                   {"bytes", bytes},
                   {"bits_per_weight", file_bits(bytes, all.values)}};
  add_range(json["total"], all);
  json["bytes"] = dict.file_bytes;
  json["header"] = dict.header_bytes;
  for (const auto& [key, value] : dict.metadata) json["metadata"][key] = value;
  return json;
}

}  // namespace nibblenet::tools
