#pragma once

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// Decodes weights [k, k + count) of one output channel into `out`: the same bits as decode_reference, with the widest
/// vector instructions this processor has. `k` is best a multiple of 8 (others start slowly).
void decode(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out);

/// As above for a list of instruction sets, so that tests can reach each of them.
enum class DecodePath : uint8_t { portable, avx2, avx512 };
DecodePath best_decode_path();
void decode(DecodePath path, const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out);

/// dots[r * N + n] = sum over C of weight(channel + r, c) * x[n][c] for r < rows <= 4: decodes each row in chunks that
/// stay in the first-level cache. x is [N, C], row-major; the order of summation depends on C alone.
void decode_dot(const PackedView& packed, int64_t channel, int64_t rows, const float* x, int64_t batch, float* dots);

}  // namespace nibblenet
