#pragma once

#include "engine/quant/packed_tensor.h"
#include "kernels/cpu/decode_cpu.h"

namespace nibblenet {

// Trellis strings on the CPU: eight or sixteen neighbouring output channels at a time, since their
// windows lie in a few bytes.

/// Decodes weights [k, k + columns) of output channels [channel, channel + rows) into rows of
/// `out`, `stride` floats apart. The bits are those of decode_reference. `channel` a multiple of 8
/// is fastest.
void decode_trellis(DecodePath path, const PackedView& packed, int64_t channel, int64_t rows, int64_t k,
                    int64_t columns, float* out, int64_t stride);

/// Images of a call of trellis_dots(), at most.
inline constexpr int64_t trellis_dots_batch = 8;

/// y[n, channel + r] = sum over c of weight(channel + r, c) * x[n][c], for r < rows <= 256 and up
/// to trellis_dots_batch images. x is [N, C] and y [N, K], row-major; `channel` is a multiple of 8.
/// The sum goes in the order of c, 256 by 256, and is multiplied by the channel's step at the end.
void trellis_dots(DecodePath path, const PackedView& packed, int64_t channel, int64_t rows, const float* x,
                  int64_t batch, float* y);

}  // namespace nibblenet
