#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/core/half.h"
#include "engine/quant/codebook.h"
#include "engine/quant/rotation.h"
#include "engine/quant/scheme.h"
#include "engine/quant/trellis.h"

namespace nibblenet {

/// A weight tensor as n-bit codes, on the host. Packed files hold it; backends make it resident.
struct PackedTensor {
  Scheme scheme;
  Shape shape;  ///< OI or OIHW

  /// shape[0] x channel_stride(inner, bits) bytes; for trellis schemes strings as TrellisLayout has
  /// them.
  std::vector<uint8_t> codes;
  /// One per group, raw little-endian bytes in scheme.scale's type: 4 or 2 bytes each. For
  /// zero-point schemes the group's max - min (widened to include 0), for trained ones its root
  /// mean square, for trellis ones close to it, else its absolute or signed maximum.
  std::vector<uint8_t> scales;
  std::vector<uint8_t> zero_points;  ///< one per group, affine schemes only: the code that stands for 0
  std::vector<uint8_t> block_ids;    ///< shape[0] x channel_stride(inner, block_id_bits()), sorted schemes only
  /// Values stored with the tensor, ascending, scale_to 1: 2^bits, or empty when the method fixes
  /// them.
  std::vector<float> codebook;

  int64_t groups() const { return static_cast<int64_t>(scales.size()) / (scheme.scale == ScaleType::f16 ? 2 : 4); }
  int block_id_bits() const;    ///< ceil(log2(groups)) for sorted schemes, at least 1; else 0
  int64_t code_stride() const;  ///< bytes from one channel's codes to the next; 0 for trellis schemes
  int64_t block_id_stride() const;
  float scale(int64_t group) const;
};

/// Checks a tensor from an untrusted file before a kernel sees it. Throws FormatError naming the
/// tensor unless every part has exactly the size of scheme and shape, rotated weights have input
/// channels that can be rotated, scales are finite and decode
/// to finite weights, zero points fit the width, block ids name existing groups, and a stored
/// codebook is finite and ascending.
void validate(const PackedTensor& packed, std::string_view name);

/// The codebook of a packed tensor: its stored values, or those of its method. For zero-point
/// schemes the values are the codes themselves (0…2^n-1) and scale_to is 2^n-1. For trellis schemes
/// it holds all values there are, which no code names.
Codebook codebook_of(const PackedTensor& packed);

/// One weight from the value of its code. `zero_point` is 0 for symmetric schemes; `step` is the
/// group's scale / scale_to. Every decoder on every processor ends in this function.
constexpr float reconstruct(float value, float zero_point, float step) { return (value - zero_point) * step; }

/// A view of all that turns codes into weights, as plain pointers into memory of any kind. It
/// serves the host's vectors, a backend's resident buffers and device code.
///   weight(channel, k) = (values[code] - zero_point[group]) * (scale[group] / scale_to)
/// In trellis schemes trellis_value_at() takes the place of values[code]. These are the weights
/// that products multiply by: rotated ones where the scheme says so.
struct PackedView {
  int bits = 0;
  int64_t channels = 0;
  int64_t channel_elements = 0;
  int64_t code_stride = 0;
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;  ///< float or f16 bits
  ScaleType scale_type = ScaleType::f32;
  const uint8_t* zero_points = nullptr;  ///< null: symmetric
  const uint8_t* block_ids = nullptr;    ///< null: `groups` maps the index
  int block_id_bits = 0;
  int64_t block_id_stride = 0;
  const float* values = nullptr;  ///< 256 entries by code
  float scale_to = 1.0F;
  GroupMap groups;
  int trellis_quarters = 0;  ///< above 0: trellis strings of that many quarters of a bit a weight
  Rotation rotation;         ///< of the inputs that products read (hadamard.h)

  TrellisLayout trellis() const { return {channels, channel_elements, trellis_quarters}; }
  /// Scale of a group in float32.
  float scale(int64_t group) const {
    if (scale_type == ScaleType::f32) return static_cast<const float*>(scales)[group];
    return f16_to_f32(static_cast<const uint16_t*>(scales)[group]);
  }
  /// The factor of a decoded value: (scale / scale_to) in float32.
  float step(int64_t group) const { return scale(group) / scale_to; }
};

/// The layout of a trellis tensor's strings.
TrellisLayout trellis_layout(const PackedTensor& packed);

/// The view of a packed tensor. `codebook` must outlive it.
PackedView view_of(const PackedTensor& packed, const Codebook& codebook);

/// Decodes weights [k, k + count) of one channel. This is the plain reference: every faster decoder
/// gives the same bits.
void decode_reference(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out);

/// Rounds every weight to the nearest value of its scheme. Deterministic; uses all OpenMP threads.
/// Throws UsageError for an invalid scheme, ShapeError for ranks other than 2 and 4, tensors
/// without elements, and rotated weights whose input channels cannot be rotated, Error naming
/// `name` for NaN, Inf, or scales that their type cannot hold (see store_scales()).
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name);

/// Decodes all weights to float32, and turns rotated ones back: the weights of a layer whose inputs
/// are not rotated. `out` has the packed tensor's shape.
void dequantize(const PackedTensor& packed, TensorView<float> out);

}  // namespace nibblenet
