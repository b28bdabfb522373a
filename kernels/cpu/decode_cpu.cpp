#include "kernels/cpu/decode_cpu.h"

#include <algorithm>
#include <array>

#include "engine/quant/bits.h"
#include "kernels/cpu/processor.h"
#include "kernels/cpu/trellis_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && !defined(__clang__)
// GCC 12 warns of "undefined" operands inside its own AVX-512 intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace nibblenet {
namespace {

/// The bytes of some codes, which may be read up to `end`.
struct Span {
  const uint8_t* bytes;
  const uint8_t* end;
};
/// Looks up codes [0, count): out[i] = values[code i] * step. Returns how many values it wrote: the
/// vector versions stop before a load would pass `end`.
using LookUp = int64_t (*)(Span codes, int64_t count, const float* values, float step, float* out);

#if defined(__x86_64__)

/// Eight n-bit codes from the eight bytes at `bytes`, one per 32-bit lane. Even codes are shifted
/// down in the low 32 bits of four 64-bit lanes, odd ones in the high 32 bits.
template <int bits>
__attribute__((target("avx2"))) inline __m256i eight_codes(const uint8_t* bytes) {
  int64_t word;
  std::memcpy(&word, bytes, sizeof word);
  const __m256i words = _mm256_set1_epi64x(word);
  const __m256i even = _mm256_srlv_epi64(words, _mm256_setr_epi64x(0, 2 * bits, 4 * bits, 6 * bits));
  const __m256i odd = _mm256_srlv_epi64(words, _mm256_setr_epi64x(bits, 3 * bits, 5 * bits, 7 * bits));
  const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0b10101010);
  return _mm256_and_si256(both, _mm256_set1_epi32((1 << bits) - 1));
}

/// Eight 4-bit codes: the two nibbles of each byte side by side. This takes fewer instructions than
/// the shifts above, and 4 bits is the width that matters most.
template <>
__attribute__((target("avx2"))) inline __m256i eight_codes<4>(const uint8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  const __m128i low = _mm_cvtsi32_si128(word);
  const __m128i mixed = _mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4));
  return _mm256_and_si256(_mm256_cvtepu8_epi32(mixed), _mm256_set1_epi32(15));
}

template <int bits>
__attribute__((target("avx2"))) int64_t look_up_avx2(Span codes, int64_t count, const float* values, float step,
                                                     float* out) {
  const __m256 factor = _mm256_set1_ps(step);
  const __m256 low = _mm256_loadu_ps(values);
  const __m256 high = _mm256_loadu_ps(values + 8);
  int64_t i = 0;
  for (const uint8_t* bytes = codes.bytes; i + 8 <= count && bytes + 8 <= codes.end; i += 8, bytes += bits) {
    __m256 value;
    if constexpr (bits == 8) {  // plain loads beat both the gather and the shifts
      value = _mm256_setr_ps(values[bytes[0]], values[bytes[1]], values[bytes[2]], values[bytes[3]], values[bytes[4]],
                             values[bytes[5]], values[bytes[6]], values[bytes[7]]);
    } else {
      const __m256i code = eight_codes<bits>(bytes);
      if constexpr (bits <= 3) {
        value = _mm256_permutevar8x32_ps(low, code);
      } else if constexpr (bits == 4) {
        value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code),
                                 _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
      } else {
        value = _mm256_i32gather_ps(values, code, 4);
      }
    }
    _mm256_storeu_ps(out + i, _mm256_mul_ps(value, factor));
  }
  return i;
}

#define NIBBLENET_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2")))

/// values[code] for 2^bits entries in registers: one two-source permutation per pair of 16, then a
/// tree of selections by the upper bits of the code.
template <int bits>
NIBBLENET_AVX512 inline __m512 look_up_in_registers(const __m512 (&table)[16], __m512i code) {
  if constexpr (bits <= 4) {
    return _mm512_permutexvar_ps(code, table[0]);
  } else {
    constexpr int pairs = 1 << (bits - 5);
    __m512 level[8];
    for (int i = 0; i < pairs; ++i) level[i] = _mm512_permutex2var_ps(table[2 * i], code, table[2 * i + 1]);
    for (int width = pairs, bit = 5; width > 1; width /= 2, ++bit) {
      const __mmask16 upper = _mm512_test_epi32_mask(code, _mm512_set1_epi32(1 << bit));
      for (int i = 0; i < width / 2; ++i) level[i] = _mm512_mask_blend_ps(upper, level[2 * i], level[2 * i + 1]);
    }
    return level[0];
  }
}

/// Sixteen codes, one per 32-bit lane. Bits above the code may be set where the look-up ignores
/// them (4 bits). Reads up to 8 + bits bytes. Every processor with AVX-512 has a fast bit deposit,
/// which spreads eight codes over eight bytes.
template <int bits>
NIBBLENET_AVX512 inline __m512i sixteen_codes(const uint8_t* bytes) {
  if constexpr (bits == 8) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  } else if constexpr (bits == 4) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4)));
  } else {
    constexpr uint64_t one_per_byte = ((1U << bits) - 1U) * 0x0101010101010101ULL;
    uint64_t first, second;
    std::memcpy(&first, bytes, sizeof first);
    std::memcpy(&second, bytes + bits, sizeof second);
    return _mm512_cvtepu8_epi32(_mm_set_epi64x(static_cast<int64_t>(_pdep_u64(second, one_per_byte)),
                                               static_cast<int64_t>(_pdep_u64(first, one_per_byte))));
  }
}

template <int bits>
NIBBLENET_AVX512 int64_t look_up_avx512(Span codes, int64_t count, const float* values, float step, float* out) {
  constexpr int registers = bits <= 4 ? 1 : 1 << (bits - 4);
  __m512 table[16];
  for (int i = 0; i < registers; ++i) table[i] = _mm512_loadu_ps(values + 16 * i);
  const __m512 factor = _mm512_set1_ps(step);
  int64_t i = 0;
  for (const uint8_t* bytes = codes.bytes; i + 16 <= count && bytes + bits + 8 <= codes.end;
       i += 16, bytes += 2 * bits) {
    const __m512i code = sixteen_codes<bits>(bytes);
    _mm512_storeu_ps(out + i, _mm512_mul_ps(look_up_in_registers<bits>(table, code), factor));
  }
  return i;
}

constexpr std::array<LookUp, 9> avx2_by_bits = {nullptr,         nullptr,         look_up_avx2<2>,
                                                look_up_avx2<3>, look_up_avx2<4>, look_up_avx2<5>,
                                                look_up_avx2<6>, look_up_avx2<7>, look_up_avx2<8>};
constexpr std::array<LookUp, 9> avx512_by_bits = {nullptr,           nullptr,           look_up_avx512<2>,
                                                  look_up_avx512<3>, look_up_avx512<4>, look_up_avx512<5>,
                                                  look_up_avx512<6>, look_up_avx512<7>, look_up_avx512<8>};

#endif

/// out[i] = values[code of weight k + i] * step.
void look_up(DecodePath path, const PackedView& packed, const uint8_t* channel, int64_t k, int64_t count, float step,
             float* out) {
  int64_t done = 0;
#if defined(__x86_64__)
  if (path != DecodePath::portable) {
    // Vector loads start at a whole byte. Up to seven weights before it are read one by one.
    const int64_t head = std::min(count, (8 - k % 8) % 8);
    for (; done < head; ++done) out[done] = packed.values[read_field(channel, k + done, packed.bits)] * step;
    const auto& by_bits = path == DecodePath::avx512 ? avx512_by_bits : avx2_by_bits;
    const Span codes = {channel + (k + done) * packed.bits / 8, channel + packed.code_stride};
    done += by_bits[static_cast<size_t>(packed.bits)](codes, count - done, packed.values, step, out + done);
  }
#else
  (void)path;
#endif
  for (; done < count; ++done) out[done] = packed.values[read_field(channel, k + done, packed.bits)] * step;
}

/// Subtracts the zero point from looked-up values and multiplies them by their groups' steps, run
/// by run.
void apply_steps(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out) {
  // In blocks and rows, consecutive runs have consecutive groups, which saves the map's divisions.
  const bool consecutive =
      packed.groups.kind == Granularity::Kind::block || packed.groups.kind == Granularity::Kind::row;
  int64_t group = packed.groups.group(channel, k);
  for (int64_t i = 0; i < count;) {
    const int64_t end = std::min(count, i + packed.groups.run(k + i));
    const float step = packed.step(group);
    const float zero = packed.zero_points != nullptr ? static_cast<float>(packed.zero_points[group]) : 0.0F;
    for (; i < end; ++i) out[i] = (out[i] - zero) * step;
    if (i < count) group = consecutive ? group + 1 : packed.groups.group(channel, k + i);
  }
}

void apply_block_steps(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out) {
  const uint8_t* ids = packed.block_ids + channel * packed.block_id_stride;
  for (int64_t i = 0; i < count; ++i) out[i] *= packed.step(read_field(ids, k + i, packed.block_id_bits));
}

#if defined(__x86_64__)

NIBBLENET_AVX512 float sum_of(__m512 v) { return _mm512_reduce_add_ps(v); }

/// sums[r][n] += panel[r] . x[n] over `count` columns, four rows at a time.
NIBBLENET_AVX512 void dot_avx512(const float* panel, int64_t panel_stride, int64_t rows, const float* x,
                                 int64_t x_stride, int64_t batch, int64_t count, float* sums) {
  const int64_t whole = count / 16 * 16;
  const __mmask16 rest = static_cast<__mmask16>((1U << (count - whole)) - 1U);
  for (int64_t n = 0; n < batch; ++n) {
    const float* xn = x + n * x_stride;
    __m512 sum[4] = {};
    for (int64_t c = 0; c < whole; c += 16) {
      const __m512 value = _mm512_loadu_ps(xn + c);
      for (int r = 0; r < 4; ++r)
        sum[r] = _mm512_fmadd_ps(_mm512_loadu_ps(panel + r * panel_stride + c), value, sum[r]);
    }
    if (rest != 0) {
      const __m512 value = _mm512_maskz_loadu_ps(rest, xn + whole);
      for (int r = 0; r < 4; ++r)
        sum[r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, panel + r * panel_stride + whole), value, sum[r]);
    }
    for (int64_t r = 0; r < rows; ++r) sums[r * batch + n] += sum_of(sum[r]);
  }
}

__attribute__((target("avx2,fma"))) void dot_avx2(const float* panel, int64_t panel_stride, int64_t rows,
                                                  const float* x, int64_t x_stride, int64_t batch, int64_t count,
                                                  float* sums) {
  const int64_t whole = count / 8 * 8;
  for (int64_t n = 0; n < batch; ++n) {
    const float* xn = x + n * x_stride;
    __m256 sum[4] = {};
    for (int64_t c = 0; c < whole; c += 8) {
      const __m256 value = _mm256_loadu_ps(xn + c);
      for (int r = 0; r < 4; ++r)
        sum[r] = _mm256_fmadd_ps(_mm256_loadu_ps(panel + r * panel_stride + c), value, sum[r]);
    }
    for (int64_t r = 0; r < rows; ++r) {
      alignas(32) float lanes[8];
      _mm256_store_ps(lanes, sum[r]);
      float total = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
      for (int64_t c = whole; c < count; ++c) total += panel[r * panel_stride + c] * xn[c];
      sums[r * batch + n] += total;
    }
  }
}

#endif

void dot_portable(const float* panel, int64_t panel_stride, int64_t rows, const float* x, int64_t x_stride,
                  int64_t batch, int64_t count, float* sums) {
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t r = 0; r < rows; ++r) {
      float total = 0;
      for (int64_t c = 0; c < count; ++c) total += panel[r * panel_stride + c] * x[n * x_stride + c];
      sums[r * batch + n] += total;
    }
  }
}

auto* dot_of([[maybe_unused]] DecodePath path) {
#if defined(__x86_64__)
  if (path == DecodePath::avx512) return dot_avx512;
  if (path == DecodePath::avx2) return dot_avx2;
#endif
  return dot_portable;
}

}  // namespace

DecodePath best_decode_path() {
  switch (best_instruction_set()) {
    case InstructionSet::portable:
      return DecodePath::portable;
    case InstructionSet::avx2:
      return DecodePath::avx2;
    default:
      return DecodePath::avx512;
  }
}

void decode(DecodePath path, const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out) {
  if (packed.trellis_quarters > 0) return decode_trellis(path, packed, channel, 1, k, count, out, count);
  const uint8_t* codes = packed.codes + channel * packed.code_stride;
  const bool one_group = packed.block_ids == nullptr && packed.groups.run(k) >= count;
  if (one_group && packed.zero_points == nullptr) {
    look_up(path, packed, codes, k, count, packed.step(packed.groups.group(channel, k)), out);
    return;
  }
  look_up(path, packed, codes, k, count, 1.0F, out);  // times one is exact
  if (packed.block_ids != nullptr) {
    apply_block_steps(packed, channel, k, count, out);
  } else {
    apply_steps(packed, channel, k, count, out);
  }
}

void decode(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out) {
  decode(best_decode_path(), packed, channel, k, count, out);
}

void decode_rows(const PackedView& packed, int64_t channel, int64_t rows, int64_t k, int64_t columns, float* out) {
  if (packed.trellis_quarters > 0)
    return decode_trellis(best_decode_path(), packed, channel, rows, k, columns, out, columns);
  for (int64_t r = 0; r < rows; ++r) decode(packed, channel + r, k, columns, out + r * columns);
}

void decode_dot(const PackedView& packed, int64_t channel, int64_t rows, const float* x, int64_t batch, float* dots) {
  constexpr int64_t chunk = 1024;  // four rows of it are 16 KB: half a first-level cache
  alignas(64) float panel[4 * chunk] = {};
  std::fill_n(dots, rows * batch, 0.0F);
  const DecodePath path = best_decode_path();
  auto* const dot = dot_of(path);
  for (int64_t c = 0; c < packed.channel_elements; c += chunk) {
    const int64_t count = std::min(chunk, packed.channel_elements - c);
    for (int64_t r = 0; r < rows; ++r) decode(path, packed, channel + r, c, count, panel + r * chunk);
    dot(panel, chunk, rows, x + c, packed.channel_elements, batch, count, dots);
  }
}

}  // namespace nibblenet
