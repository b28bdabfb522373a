#include "engine/quant/size.h"

#include <algorithm>

#include "engine/quant/bits.h"

namespace nibblenet {
namespace {

EstimatedSize& operator+=(EstimatedSize& total, const EstimatedSize& part) {
  total.codes += part.codes;
  total.scales += part.scales;
  return total;
}

ResidentSize& operator+=(ResidentSize& total, const ResidentSize& part) {
  total.codes += part.codes;
  total.scales += part.scales;
  total.zero_points += part.zero_points;
  total.codebooks += part.codebooks;
  total.block_ids += part.block_ids;
  total.padding += part.padding;
  total.biases += part.biases;
  total.weights += part.weights;
  return total;
}

}  // namespace

double SizeRow::bits_per_weight() const {
  if (weights == 0) return 0;
  const int64_t bytes = resident.codes + resident.scales + resident.zero_points + resident.block_ids +
                        resident.codebooks + resident.weights;
  return static_cast<double>(bytes) * 8 / static_cast<double>(weights);
}

SizeRow sum(const std::vector<SizeRow>& rows, std::string name) {
  SizeRow total;
  total.name = std::move(name);
  for (const SizeRow& row : rows) {
    total.weights += row.weights;
    total.groups += row.groups;
    total.estimated += row.estimated;
    total.resident += row.resident;
    total.file += row.file;
  }
  if (rows.empty()) return total;
  const bool same = std::ranges::all_of(rows, [&](const SizeRow& row) { return row.scheme == rows[0].scheme; });
  total.scheme = same ? rows[0].scheme : "mixed";
  return total;
}

EstimatedSize estimated_size(const Scheme& scheme, const Shape& shape) {
  validate(scheme);
  const auto groups = static_cast<double>(make_group_map(scheme.granularity, shape).groups);
  return {.codes = static_cast<double>(shape.elements()) * scheme.bits_per_code() / 8,
          .scales = groups * (scheme.scale == ScaleType::f16 ? 2 : 4)};
}

EstimatedSize estimated_size(const PackedTensor& packed) { return estimated_size(packed.scheme, packed.shape); }

ResidentSize resident_size(const PackedTensor& packed) {
  const int64_t channels = packed.shape[0];
  const int64_t inner = packed.shape.inner_elements();
  ResidentSize size;
  size.codes = packed.scheme.is_trellis()  // without what pads the last sequence
                   ? (channels * inner * packed.scheme.quarters() + 31) / 32
                   : channels * packed_bytes(inner, packed.scheme.bits);
  size.block_ids = channels * packed_bytes(inner, packed.block_id_bits());
  size.padding = static_cast<int64_t>(packed.codes.size() + packed.block_ids.size()) - size.codes - size.block_ids;
  size.scales = static_cast<int64_t>(packed.scales.size());
  size.zero_points = static_cast<int64_t>(packed.zero_points.size());
  size.codebooks = static_cast<int64_t>(packed.codebook.size() * sizeof(float));
  return size;
}

}  // namespace nibblenet
