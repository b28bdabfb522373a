#include "kernels/cuda/weights/weight_traits.h"

#include <optional>

#include "kernels/cuda/weights/string_block.h"
#include "kernels/cuda/weights/superblock.h"

namespace nibblenet {
namespace {

/// Number of neighbours in a row that share a scale, in device order, counted from a multiple of
/// that number. The row's length where all do. Returns nothing where scales change more freely.
std::optional<int64_t> run_of_scales(const PackedTensor& packed) {
  const bool matrix = packed.shape.rank() == 2;
  const int64_t columns = packed.shape.inner_elements();
  const Granularity granularity = packed.scheme.granularity;
  switch (granularity.kind) {
    case Granularity::Kind::tensor:
    case Granularity::Kind::channel:
      return columns;
    case Granularity::Kind::row:
      if (matrix) return columns;
      break;
    case Granularity::Kind::block:
      if (matrix || granularity.rows >= columns) return granularity.rows;
      break;
    case Granularity::Kind::tile:
      if (matrix) return granularity.columns;
      break;
    case Granularity::Kind::sorted:
      break;
  }
  return std::nullopt;
}

/// Matrices, and filters whose taps begin at superblock borders.
bool suits_superblocks(const Shape& shape) {
  return shape.rank() == 2 || (shape.rank() == 4 && shape[1] % Superblocks::size == 0);
}

}  // namespace

bool suits_superblocks(const PackedTensor& packed) {
  if (packed.scheme.is_trellis()) return false;
  // Scales that change along a row may change at superblock borders only.
  const auto run = run_of_scales(packed);
  if (!run || (*run < packed.shape.inner_elements() && *run % Superblocks::size != 0)) return false;
  return suits_superblocks(packed.shape);
}

WeightLayout best_layout(const PackedTensor& packed) {
  if (packed.scheme.is_trellis()) {
    const bool fills = packed.shape[0] >= trellis_granule && suits_string_blocks(packed.shape.inner_elements());
    return fills ? WeightLayout::strings : WeightLayout::channels;
  }
  const bool better =
      suits_superblocks(packed) && superblocks_fit(packed.shape[0], packed.shape.inner_elements(), packed.scheme.bits);
  return better ? WeightLayout::superblocks : WeightLayout::channels;
}

WeightLayout best_layout(const Shape& shape) {
  const bool whole =
      suits_superblocks(shape) && shape[0] % Superblocks::size == 0 && shape.inner_elements() % Superblocks::size == 0;
  return whole && shape.elements() > 0 ? WeightLayout::superblocks : WeightLayout::channels;
}

WeightLayout trained_layout(const Shape& shape, bool with_wgmma) {
  return with_wgmma ? WeightLayout::channels : best_layout(shape);
}

WeightTraits traits_of(const PackedTensor& packed, WeightLayout layout) {
  WeightTraits traits{.form = WeightForm::packed,
                      .layout = layout,
                      .bits = layout == WeightLayout::strings ? 16 : packed.scheme.bits,
                      .integers = packed.scheme.method == Method::linear && packed.codebook.empty(),
                      .groups = packed.groups()};
  const auto run = run_of_scales(packed);
  if (layout == WeightLayout::superblocks && run && *run < packed.shape.inner_elements()) traits.scale_run = *run;
  traits.steps_inside =
      traits.scale_run != 0 || packed.scheme.granularity.kind == Granularity::Kind::tile || packed.scheme.zero_point;
  return traits;
}

WeightTraits traits_of(Precision precision, WeightLayout layout) {
  if (precision == Precision::float32) return {};
  return {.form = WeightForm::float16, .layout = layout};
}

}  // namespace nibblenet
