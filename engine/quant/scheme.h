#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// How the values that codes stand for are chosen. Every row of `method_table()` is one of these.
enum class Method : uint8_t {
  linear,
  fp8_e4m3,
  fp8_e5m2,
  dynamic_tree,
  stable_embedding,      ///< dynamic tree over magnitude-sorted blocks (the original notebooks' stable embedding)
  stable_embedding_fp8,  ///< FP8 E4M3 over magnitude-sorted blocks
  nf4,
  fp4,
  kmeans,   ///< values trained for each tensor and stored with it (Deep Compression, Han 2016)
  trellis,  ///< strings of bits along the output channels, values computed from a window (QTIP, Tseng 2024)
};

/// How weights fall into groups that share one scale.
struct Granularity {
  enum class Kind : uint8_t {
    tensor,   ///< one group
    channel,  ///< one per output channel (the first dimension)
    row,      ///< each run of the last dimension
    block,    ///< runs of `rows` weights inside an output channel; the last one may be shorter
    tile,     ///< `rows` x `columns` tiles of the last two dimensions; border tiles may be smaller
    sorted,   ///< weights sorted by magnitude and cut into runs of `rows` (0: as many as output channels)
  };
  Kind kind = Kind::channel;
  int64_t rows = 0;
  int64_t columns = 0;
  friend bool operator==(const Granularity&, const Granularity&) = default;
};

/// "tensor", "channel", "row", "block:64", "tile:8x8", "sorted", "sorted:4096"
std::string to_string(const Granularity& granularity);
/// Inverse of to_string. Throws UsageError with the list of forms.
Granularity parse_granularity(std::string_view text);

/// The type of stored scales, and the sign that they take.
enum class ScaleType : uint8_t { f32, f16 };
enum class ScaleSign : uint8_t {
  absolute,   ///< scale = the group's absolute maximum
  signed_max  ///< scale = the signed element of largest magnitude (written "signed")
};
/// Names in flags and files, and their inverse. Parsing throws UsageError.
std::string_view to_string(ScaleType type);
std::string_view to_string(ScaleSign sign);
ScaleType parse_scale_type(std::string_view text);
ScaleSign parse_scale_sign(std::string_view text);

/// One row of the table of methods: its name on the command line and in files, and what it
/// supports.
struct MethodTraits {
  Method method;
  std::string_view name;
  int min_bits;
  int max_bits;
  Granularity default_granularity;
  ScaleSign default_sign;    ///< signed where the codebook holds +1 but not -1
  bool sorted;               ///< groups are magnitude-sorted blocks, with stored block ids
  bool trained;              ///< the values come from the weights; a group's scale is its root mean square
  std::string_view summary;  ///< one line for --help
};
/// The list of methods: files, flags, kernels and tests walk it.
std::span<const MethodTraits> method_table();
/// Those of them whose codes stand for one weight each: all but trellis, which is the last.
std::span<const MethodTraits> scalar_methods();
const MethodTraits& traits_of(Method method);
/// Throws UsageError with the list of names.
Method parse_method(std::string_view name);

/// Codebook x bits x granularity x scale: everything that says how one weight tensor is stored.
struct Scheme {
  Method method = Method::linear;
  int bits = 4;  ///< of a weight's code, whole ones
  Granularity granularity{};
  ScaleType scale = ScaleType::f32;
  ScaleSign sign = ScaleSign::absolute;
  bool zero_point = false;  ///< affine over [min, max]; `linear` only
  int more_quarters = 0;    ///< quarters of a bit beside `bits`; `trellis` only
  /// Above 0: the layer's inputs are rotated (engine/quant/hadamard.h), and each of their channels
  /// is that many neighbouring inputs: 1, or in a linear layer the pixels of flattened images.
  int64_t rotated = 0;
  friend bool operator==(const Scheme&, const Scheme&) = default;

  int quarters() const { return 4 * bits + more_quarters; }  ///< quarters of a bit, a weight
  double bits_per_code() const { return quarters() / 4.0; }
  bool is_trellis() const { return method == Method::trellis; }
  bool is_rotated() const { return rotated > 0; }
};

/// The scheme of a method with its default granularity and sign.
Scheme default_scheme(Method method, int bits);
/// The scheme of a method at every width that it supports, the narrowest first.
std::vector<Scheme> schemes_of_every_width(Method method);
/// `scheme` at a width like 4 or 1.25. Throws UsageError if it does not support that.
Scheme with_bits(Scheme scheme, double bits);
/// Throws UsageError when the combination does not exist, with the list of what does: bits outside
/// the method's range, a sorted granularity for an unsorted method (and the reverse), a zero point
/// that is not linear's, block or tile sizes below 1, a trellis without one scale a channel,
/// rotated weights of a sorted method.
void validate(const Scheme& scheme);

/// "linear:4:channel" with ":f16", ":signed", ":zero-point", ":rotated" or ":rotated:36" appended
/// where they are not the method's default.
std::string to_string(const Scheme& scheme);
/// The bits of a scheme as text: "4", "1.25".
std::string bits_text(const Scheme& scheme);
/// Inverse of to_string: METHOD[:BITS][:GRANULARITY][:f16|f32][:absolute|signed][:zero-point]
/// [:rotated[:N]]; parts left out take the method's defaults (bits: 4 if the method has them, else
/// its largest). block:N, tile:RxC and sorted:B contain a colon of their own. Validated; throws
/// UsageError.
Scheme parse_scheme(std::string_view text);

/// Where each weight's scale lies. Cheap to copy; constexpr, so that the same arithmetic serves CPU
/// and device code. Group numbers are row-major: output channel, then the run, block or tile inside
/// it. Groups of `sorted` granularity are not a function of the index: their ids are stored.
struct GroupMap {
  Granularity::Kind kind = Granularity::Kind::tensor;
  int64_t channel_elements = 0;    ///< weights behind one output channel
  int64_t last = 1;                ///< size of the last dimension
  int64_t plane = 1;               ///< elements of the last two dimensions of a 4-d tensor
  int64_t block = 1;               ///< block, sorted: N; tile: rows
  int64_t tile_columns = 1;        ///< tile: columns
  int64_t groups_per_channel = 1;  ///< row, block, 4-d tile: groups in a channel
  int64_t tiles_across = 1;        ///< tiles in a run of the last dimension
  int64_t tiles_in_plane = 1;      ///< tiles in one kernel plane of a 4-d tensor
  bool matrix = true;              ///< 2-d tensor: tiles span output channels
  int64_t groups = 1;

  /// Group of weight `k` (index within its channel) of output channel `channel`; 0 for `sorted`.
  constexpr int64_t group(int64_t channel, int64_t k) const {
    switch (kind) {
      case Granularity::Kind::tensor:
      case Granularity::Kind::sorted:
        return 0;
      case Granularity::Kind::channel:
        return channel;
      case Granularity::Kind::row:
        return channel * groups_per_channel + k / last;
      case Granularity::Kind::block:
        return channel * groups_per_channel + k / block;
      case Granularity::Kind::tile:
        if (matrix) return channel / block * tiles_across + k / tile_columns;
        return channel * groups_per_channel + k / plane * tiles_in_plane + k % plane / last / block * tiles_across +
               k % last / tile_columns;
    }
    return 0;
  }

  /// How many weights from `k` on, in the same channel, are sure to share its group. At least 1.
  constexpr int64_t run(int64_t k) const {
    switch (kind) {
      case Granularity::Kind::tensor:
      case Granularity::Kind::channel:
        return channel_elements - k;
      case Granularity::Kind::row:
        return last - k % last;
      case Granularity::Kind::block:
        return shorter(block - k % block, channel_elements - k);
      case Granularity::Kind::tile:
        return shorter(tile_columns - k % last % tile_columns, last - k % last);
      case Granularity::Kind::sorted:
        return 1;
    }
    return 1;
  }

  /// How many neighbouring output channels, from a multiple of it on, share groups with each other
  /// and no others.
  constexpr int64_t channels_in_common() const {
    if (kind == Granularity::Kind::tile && matrix) return block;
    const bool spans_all = kind == Granularity::Kind::tensor || kind == Granularity::Kind::sorted;
    return spans_all ? INT64_MAX : 1;
  }

 private:
  static constexpr int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }
};

/// Groups of a weight tensor of rank 2 (OI) or 4 (OIHW). For `sorted`, `groups` is the number of
/// blocks. Throws ShapeError for other ranks, tensors without elements, and more than 2^25 sorted
/// blocks.
GroupMap make_group_map(const Granularity& granularity, const Shape& shape);

}  // namespace nibblenet
