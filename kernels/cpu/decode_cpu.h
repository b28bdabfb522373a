#pragma once

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// Decodes weights [k, k + count) of one output channel into `out`, with the widest vector
/// instructions of this processor. The bits are those of decode_reference. A `k` that is a multiple
/// of 8 is fastest.
void decode(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out);

/// An instruction set of decode(), for tests that need a certain one.
enum class DecodePath : uint8_t { portable, avx2, avx512 };
DecodePath best_decode_path();
void decode(DecodePath path, const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out);

/// Decodes weights [k, k + columns) of `rows` output channels into a dense out[rows, columns].
void decode_rows(const PackedView& packed, int64_t channel, int64_t rows, int64_t k, int64_t columns, float* out);

/// dots[r * N + n] = sum over c of weight(channel + r, c) * x[n][c], for r < rows <= 4. x is [N,
/// C], row-major. Rows are decoded in chunks that stay in the first-level cache. On a processor,
/// the order of summation depends on C alone.
void decode_dot(const PackedView& packed, int64_t channel, int64_t rows, const float* x, int64_t batch, float* dots);

}  // namespace nibblenet
