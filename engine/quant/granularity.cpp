#include <string>

#include "engine/quant/bits.h"
#include "engine/quant/scheme.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

using Kind = Granularity::Kind;

/// Quotient rounded up, without the overflow of adding b - 1: sizes come from the user.
int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

void set_tiles(GroupMap& map, const Granularity& granularity, const Shape& shape) {
  map.block = granularity.rows;
  map.tile_columns = granularity.columns;
  map.tiles_across = divide_up(map.last, granularity.columns);
  if (map.matrix) {
    map.groups = divide_up(shape[0], granularity.rows) * map.tiles_across;
    return;
  }
  map.tiles_in_plane = divide_up(shape[2], granularity.rows) * map.tiles_across;
  map.groups_per_channel = shape[1] * map.tiles_in_plane;
  map.groups = shape[0] * map.groups_per_channel;
}

void set_sorted_blocks(GroupMap& map, const Granularity& granularity, const Shape& shape) {
  map.block = granularity.rows == 0 ? shape[0] : granularity.rows;
  map.groups = divide_up(shape.elements(), map.block);
  constexpr int64_t most = int64_t{1} << max_field_bits;
  if (map.groups > most)
    fail<ShapeError>("{} cuts {} into {} blocks; supported: at most {}, so blocks of {} weights or more",
                     to_string(granularity), to_string(shape), map.groups, most, divide_up(shape.elements(), most));
}

}  // namespace

std::string to_string(const Granularity& granularity) {
  switch (granularity.kind) {
    case Kind::tensor:
      return "tensor";
    case Kind::channel:
      return "channel";
    case Kind::row:
      return "row";
    case Kind::block:
      return fmt::format("block:{}", granularity.rows);
    case Kind::tile:
      return fmt::format("tile:{}x{}", granularity.rows, granularity.columns);
    case Kind::sorted:
      return granularity.rows == 0 ? "sorted" : fmt::format("sorted:{}", granularity.rows);
  }
  fail<UsageError>("unknown granularity {}", static_cast<int>(granularity.kind));
}

Granularity parse_granularity(std::string_view text) {
  for (const Kind kind : {Kind::tensor, Kind::channel, Kind::row, Kind::sorted})
    if (text == to_string(Granularity{kind})) return {kind};

  const std::vector<std::string_view> parts = split(text, ':');
  if (parts.size() == 2 && (parts[0] == "block" || parts[0] == "sorted")) {
    const auto size = parse_integer(parts[1]);
    if (size && *size >= 1) return {parts[0] == "block" ? Kind::block : Kind::sorted, *size};
  }
  if (parts.size() == 2 && parts[0] == "tile") {
    const std::vector<std::string_view> sizes = split(parts[1], 'x');
    const auto rows = parse_integer(sizes.front());
    const auto columns = parse_integer(sizes.back());
    if (sizes.size() == 2 && rows && columns && *rows >= 1 && *columns >= 1) return {Kind::tile, *rows, *columns};
  }
  fail<UsageError>(
      "unknown granularity '{}'; supported: tensor, channel, row, block:N, tile:RxC, sorted, sorted:B, "
      "with sizes of at least 1",
      text);
}

GroupMap make_group_map(const Granularity& granularity, const Shape& shape) {
  if (shape.rank() != 2 && shape.rank() != 4)
    fail<ShapeError>("a weight tensor of shape {}; supported: 2 dimensions (OI) or 4 (OIHW)", to_string(shape));
  if (shape.elements() == 0) fail<ShapeError>("a weight tensor of shape {} has no elements", to_string(shape));

  GroupMap map;
  map.kind = granularity.kind;
  map.channel_elements = shape.inner_elements();
  map.last = shape.sizes().back();
  map.matrix = shape.rank() == 2;
  map.plane = map.matrix ? map.last : shape[2] * shape[3];
  switch (granularity.kind) {
    case Kind::tensor:
      break;
    case Kind::channel:
      map.groups = shape[0];
      break;
    case Kind::row:
      map.groups_per_channel = map.channel_elements / map.last;
      map.groups = shape[0] * map.groups_per_channel;
      break;
    case Kind::block:
      map.block = granularity.rows;
      map.groups_per_channel = divide_up(map.channel_elements, granularity.rows);
      map.groups = shape[0] * map.groups_per_channel;
      break;
    case Kind::tile:
      set_tiles(map, granularity, shape);
      break;
    case Kind::sorted:
      set_sorted_blocks(map, granularity, shape);
      break;
  }
  return map;
}

}  // namespace nibblenet
