#include "kernels/cpu/narrow_weight.h"

#include <algorithm>
#include <cstring>

#include "engine/quant/bits.h"
#include "engine/quant/byte_values.h"
#include "kernels/cpu/weight_cpu.h"

namespace nibblenet {
namespace {

constexpr size_t read_beyond = 64;  ///< bytes: see UnpackWork

/// Calls use(place, element) for every weight of a channel: its place among all values, and its
/// index in the channel in PyTorch's order.
template <class Use>
void for_each_place(const PanelLayout& layout, int64_t channel, Use use) {
  const int64_t panel = channel / panel_channels;
  for (int64_t tap = 0; tap < layout.taps(); ++tap)
    for (int64_t input = 0; input < layout.inputs; ++input)
      use(layout.offset(panel) + layout.place(panel, channel % panel_channels, tap, input),
          input * layout.taps() + tap);
}

}  // namespace

PanelLayout::PanelLayout(const Shape& shape, int64_t values_of_group)
    : channels(shape[0]),
      inputs(shape[1]),
      rows(shape.rank() == 4 ? shape[2] : 1),
      columns(shape.rank() == 4 ? shape[3] : 1),
      group(values_of_group) {}

NarrowWeightCpu::NarrowWeightCpu(MemoryResource& memory, const PackedTensor& packed, Precision precision,
                                 const InputRange& input, InstructionSet set)
    : shape_(packed.shape),
      precision_(precision),
      input_(input),
      kernels_(&narrow_kernels(precision, set)),
      layout_(packed.shape, kernels_->group),
      bits_(packed.scheme.bits),
      codes_(memory, static_cast<size_t>(packed_bytes(layout_.values(), bits_)) + read_beyond, MemoryCategory::codes),
      scales_(copy_of(memory, packed.scales, MemoryCategory::scales)),
      zero_points_(copy_of(memory, packed.zero_points, MemoryCategory::zero_points)),
      table_(memory, 1, MemoryCategory::codebooks) {
  const Codebook codebook = codebook_of(packed);
  view_ = view_of(packed, codebook);
  ValueTable& table = *new (table_.data()) ValueTable;
  const ByteValues values = byte_values(view_);
  constexpr double rounding_of_floats = 1e-6;
  const bool whole = precision == Precision::int8 || values.error < rounding_of_floats;  // bytes are bfloat16, too
  table.bytes = values.bytes;
  if (whole) unit_ = values.unit;
  for (size_t code = 0; code < table.bfloats.size(); ++code)
    table.bfloats[code] = bfloat16_of(whole ? static_cast<float>(values.bytes[code]) : view_.values[code]);
  reorder(packed);
  if (precision == Precision::int8 && input.is_signed && kernels_->signed_zero != 0) {
    corrections_ = {memory, static_cast<size_t>(layout_.panels() * panel_channels), MemoryCategory::scales};
    sum_corrections(packed);
  }
  if (precision == Precision::int8 && may_sum_columns(packed.shape) && are_summands(view_, values) &&
      !input.is_signed && input.steps <= largest_byte) {
    filter_ = &filter_kernels(set, layout_.group, layout_.columns);
    if (kernels_->signed_zero != 0) {
      filter_corrections_ = {memory, static_cast<size_t>(2 * layout_.panels() * panel_channels),
                             MemoryCategory::scales};
      sum_filter_corrections(packed);
    }
  }
  resident_ = resident_size(packed);
  // Panels are dense: odd widths may take less than the file's whole bytes of every channel.
  resident_.codes = std::min(resident_.codes, static_cast<int64_t>(codes_.bytes()));
  resident_.padding = static_cast<int64_t>(codes_.bytes()) - resident_.codes;
  resident_.codebooks = static_cast<int64_t>(table_.bytes());
  resident_.scales += static_cast<int64_t>(corrections_.bytes() + filter_corrections_.bytes());
  view_.codes = nullptr;
  view_.values = nullptr;
  view_.scales = scales_.data();
  view_.zero_points = zero_points_.size() == 0 ? nullptr : zero_points_.data();
}

NarrowWeightCpu::NarrowWeightCpu(MemoryResource& memory, TensorView<const float> values, InstructionSet set)
    : shape_(values.shape()),
      precision_(Precision::bfloat16),
      kernels_(&narrow_kernels(precision_, set)),
      layout_(shape_, kernels_->group),
      bits_(16),
      codes_(memory, sizeof(uint16_t) * static_cast<size_t>(layout_.values()), MemoryCategory::weights) {
  auto* const out = reinterpret_cast<uint16_t*>(codes_.data());
  std::fill_n(out, layout_.values(), uint16_t{0});
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < layout_.channels; ++channel) {
    const float* row = values.data() + channel * layout_.inputs * layout_.taps();
    for_each_place(layout_, channel, [&](int64_t place, int64_t element) { out[place] = bfloat16_of(row[element]); });
  }
  resident_.weights = static_cast<int64_t>(codes_.bytes());
}

TensorView<float> NarrowWeightCpu::values() {
  throw Error("a weight for products in bfloat16 or int8 has no float values: make the network in float32");
}

std::optional<ByteScale> NarrowWeightCpu::byte_scale() const {
  if (precision_ != Precision::int8 || input_.is_signed || input_.largest == 0) return std::nullopt;
  return input_.scale(input_.largest);
}

double NarrowWeightCpu::product_share(int64_t stride) const {
  if (filter(stride) == nullptr) return 1.0;
  return static_cast<double>(pair_factors(layout_.columns)) / static_cast<double>(2 * layout_.columns);
}

/// Panels are the unit of work: no byte holds codes of two.
void NarrowWeightCpu::reorder(const PackedTensor& packed) {
  std::fill_n(codes_.data() + codes_.size() - read_beyond, read_beyond, uint8_t{0});
  const int64_t stride = packed.code_stride();
#pragma omp parallel
  {
    std::vector<uint8_t> codes;
#pragma omp for schedule(dynamic)
    for (int64_t panel = 0; panel < layout_.panels(); ++panel) {
      codes.assign(static_cast<size_t>(layout_.width(panel) * layout_.depth()), 0);
      const int64_t first = panel * panel_channels;
      for (int64_t k = 0; k < layout_.real_width(panel); ++k) {
        const uint8_t* row = packed.codes.data() + (first + k) * stride;
        for_each_place(layout_, first + k, [&](int64_t place, int64_t element) {
          codes[static_cast<size_t>(place - layout_.offset(panel))] =
              static_cast<uint8_t>(read_field(row, element, bits_));
        });
      }
      FieldWriter writer(codes_.data() + packed_bytes(layout_.offset(panel), bits_));
      for (const uint8_t code : codes) writer.put(code, bits_);
      writer.finish();
    }
  }
}

/// Calls use(element, value) for every weight of a channel, in PyTorch's order.
template <class Use>
void NarrowWeightCpu::for_each_value(const PackedTensor& packed, int64_t channel, Use use) const {
  const uint8_t* row = packed.codes.data() + channel * packed.code_stride();
  const int zero =
      packed.zero_points.empty() ? 0 : packed.zero_points[static_cast<size_t>(view_.groups.group(channel, 0))];
  for (int64_t k = 0; k < layout_.inputs * layout_.taps(); ++k)
    use(k, int32_t{table_.data()->bytes[read_field(row, k, bits_)]} - zero);
}

void NarrowWeightCpu::sum_corrections(const PackedTensor& packed) {
  std::fill_n(corrections_.data(), corrections_.size(), 0);
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < layout_.channels; ++channel) {
    int32_t sum = 0;
    for_each_value(packed, channel, [&](int64_t, int32_t value) { sum += value; });
    corrections_.data()[channel] = kernels_->signed_zero * sum;
  }
}

/// Of the factors of differences: g0 and g3 in even columns, -g2 and -g4 in odd ones, and half of
/// g0 - g1 + g2, which odd columns subtract.
void NarrowWeightCpu::sum_filter_corrections(const PackedTensor& packed) {
  std::fill_n(filter_corrections_.data(), filter_corrections_.size(), 0);
  int32_t* const odd_columns = filter_corrections_.data() + layout_.panels() * panel_channels;
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < layout_.channels; ++channel) {
    std::array<int32_t, 5> g{};  // sums of each column's weights
    for_each_value(packed, channel,
                   [&](int64_t k, int32_t value) { g[static_cast<size_t>(k % layout_.columns)] += value; });
    const int32_t zero = kernels_->signed_zero, half = zero / 2 * (g[0] - g[1] + g[2]);
    filter_corrections_.data()[channel] = zero * (g[0] + g[3]) + half;
    odd_columns[channel] = -zero * (g[2] + g[4]) - half;
  }
}

void NarrowWeightCpu::unpack(int64_t panel, int64_t first, int64_t count, std::byte* out) const {
  const int64_t width = layout_.width(panel), in_a_group = width * layout_.group;
  uint8_t zeros[panel_channels] = {};
  if (view_.zero_points != nullptr)
    for (int64_t k = 0; k < layout_.real_width(panel); ++k)
      zeros[k] = view_.zero_points[view_.groups.group(panel * panel_channels + k, 0)];
  kernels_->unpack({.codes = codes_.data() + packed_bytes(layout_.offset(panel) + first * in_a_group, bits_),
                    .count = count * in_a_group,
                    .bits = bits_,
                    .values = table_.data(),
                    .zero_points = view_.zero_points != nullptr ? zeros : nullptr,
                    .width = width,
                    .out = out});
}

void NarrowWeightCpu::unpack_filtered(int64_t panel, int64_t row, int64_t first, int64_t count, std::byte* out,
                                      int64_t factor_bytes) const {
  constexpr int64_t most_columns = 5;
  alignas(64) std::byte columns[most_columns * filtered_groups * 4 * panel_channels];
  const int64_t pixel = layout_.inputs / layout_.group, bytes = 4 * layout_.width(panel) * count;
  for (int64_t column = 0; column < layout_.columns; ++column)
    unpack(panel, (row * layout_.columns + column) * pixel + first, count, columns + column * bytes);
  const int64_t values = bytes / kernels_->value_bytes();
  filter_->weights(columns, values, values, out, factor_bytes / kernels_->value_bytes());
}

const std::byte* NarrowWeightCpu::unpacked_panel(int64_t panel, int64_t first) const {
  const int64_t values = layout_.offset(panel) + first * layout_.width(panel) * layout_.group;
  return reinterpret_cast<const std::byte*>(codes_.data()) + values * static_cast<int64_t>(sizeof(uint16_t));
}

void NarrowWeightCpu::factors(int64_t panel, float* factors) const {
  std::fill_n(factors, panel_channels, 1.0F);
  if (!packed()) return;
  for (int64_t k = 0; k < layout_.real_width(panel); ++k)
    factors[k] = unit_ * view_.step(view_.groups.group(panel * panel_channels + k, 0));
}

const int32_t* NarrowWeightCpu::corrections(int64_t panel) const {
  return corrections_.size() == 0 ? nullptr : corrections_.data() + panel * panel_channels;
}

const int32_t* NarrowWeightCpu::filter_corrections(int64_t panel, bool odd) const {
  if (filter_corrections_.size() == 0) return nullptr;
  return filter_corrections_.data() + ((odd ? layout_.panels() : 0) + panel) * panel_channels;
}

}  // namespace nibblenet
