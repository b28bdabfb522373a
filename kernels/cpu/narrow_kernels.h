#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/activations.h"
#include "kernels/cpu/processor.h"

namespace nibblenet {

// Products of narrow values: bytes, whose sums are int32, and bfloat16, whose sums are float32.
//
// Values lie in groups of 4 bytes along the input channels: 4 bytes, or 2 values of 16 bits. A
// panel of weights holds up to 64 output channels; its order is [group of k][output channel][value
// of the group], where k runs over window rows, window columns and input channels. A window row of
// the input is read as it lies; its last group is masked where it ends in the next pixel. One lane
// of a vector multiplies a group with a group and adds.

/// The most output channels of a panel, and the most output pixels of a tile.
inline constexpr int64_t panel_channels = 64;
inline constexpr int64_t tile_pixels = 6;
/// The output channels of a panel and the values of a window row are padded to multiples of these.
inline constexpr int64_t panel_granule = 16;
inline constexpr int64_t row_granule = 4;

/// A tile: products of some output pixels' windows with a panel.
struct TileWork {
  const std::byte* x[tile_pixels];  ///< the first value of each pixel's window
  int64_t rows;                     ///< of a window
  int64_t row_bytes;                ///< from one row of the input to the next
  int64_t groups;                   ///< in a row of a window
  int32_t last_group;               ///< the bits of a row's last group that belong to it
  const std::byte* panel;           ///< [rows][groups][width] groups
  int64_t panel_gap;                ///< bytes of the panel behind each row's groups
  int64_t width;                    ///< of the panel: a multiple of panel_granule
  void* sums;                       ///< [pixels][panel_channels], int32 or float32
  bool add;                         ///< to the sums; otherwise sets them
};

/// From the sums of some pixels of an image to outputs, as float32 or as bytes:
/// y[pixel][k] = relu((sum - correction) * (factor * image) + bias).
struct FinishWork {
  int64_t pixels;
  const void* sums;            ///< [pixels][panel_channels]
  const float* factors;        ///< [panel_channels]
  const int32_t* corrections;  ///< [panel_channels], or null: 0
  const float* bias;           ///< [channels]
  float image;
  int64_t channels;
  bool relu;
  int64_t stride;  ///< from a pixel's outputs to the next one's
  float* y;        ///< null: `bytes` is written
  uint8_t* bytes;  ///< y * inverse, rounded, at least 0 and at most `most`
  float inverse;
  int most;
};

/// Rounding of float32 inputs to narrow values.
struct RoundWork {
  const float* x;
  int64_t count;
  float inverse;   ///< bytes: 1 / the size of a step
  bool is_signed;  ///< bytes: otherwise no x is negative
  int most;        ///< bytes: the largest
  std::byte* out;  ///< [count] values
};

/// What the codes of a panel stand for.
struct ValueTable {
  std::array<int8_t, 256> bytes{};      ///< by code
  std::array<uint16_t, 256> bfloats{};  ///< by code; unused where there are offsets
};

/// Unpacking of codes into values: code i of the stream belongs to channel (i / group) % width.
struct UnpackWork {
  const uint8_t* codes;  ///< may be read up to 64 bytes beyond their end
  int64_t count;         ///< a multiple of 64
  int bits;
  const ValueTable* values;
  const uint8_t* zero_points;  ///< [width], or null
  int64_t width;
  std::byte* out;
};

/// The kernels of a precision on an instruction set.
struct NarrowKernels {
  const char* name;     ///< "VNNI"
  int64_t group;        ///< values in 4 bytes
  int32_t signed_zero;  ///< what stands for 0 where inputs are signed
  void (*tile)(const TileWork& work, int64_t pixels);
  /// Returns whether all outputs are finite, where they become bytes; true where they are float32.
  bool (*finish)(const FinishWork& work);
  /// From bytes between layers to values of products in int8; null in bfloat16.
  void (*widen)(const uint8_t* x, int64_t count, std::byte* out);
  /// Returns whether all numbers are finite. (bfloat16 keeps those that are not, and returns true.)
  bool (*round)(const RoundWork& work);
  void (*unpack)(const UnpackWork& work);

  int64_t value_bytes() const { return 4 / group; }
};

/// The kernels for bfloat16 or int8. All give the same bits in int8; in bfloat16, sums differ by
/// their rounding. `vbmi`: whether they may permute bytes, which not every processor with AVX-512
/// does.
const NarrowKernels& narrow_kernels(Precision precision, InstructionSet set, bool vbmi = has_vbmi());
/// Whether products in this precision are faster than in float32.
bool has_fast_products(Precision precision, InstructionSet set);

/// The largest magnitude of some floats; NaN or infinity if one is.
float largest_magnitude(const float* x, int64_t count);

/// bfloat16 from float32, to nearest even. Denormals become 0, as the processors' conversion has
/// it; NaN stays NaN.
uint16_t bfloat16_of(float value);

}  // namespace nibblenet
