#include "kernels/cpu/trellis_cpu.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/processor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && !defined(__clang__)
// GCC 12 warns of "undefined" operands inside its own AVX-512 intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace nibblenet {
namespace {

constexpr int64_t trellis_lanes = 8;

/// Eight neighbouring channels of a sequence, and where their strings lie.
struct Eight {
  int64_t first;  ///< channel in the sequence, a multiple of 8
  const uint8_t* strings;
  int64_t bytes;  ///< of a string
  int quarters;

  Eight(const PackedView& packed, int64_t channel)
      : first(channel % trellis_sequence),
        strings(packed.codes + packed.trellis().offset(channel / trellis_sequence, 0)),
        bytes(packed.trellis().string_bytes(channel / trellis_sequence)),
        quarters(packed.trellis_quarters) {}
  const uint8_t* string(int64_t column) const { return strings + column * bytes; }
};

void values_portable(const Eight& e, int64_t column, float* values) {
  for (int64_t lane = 0; lane < trellis_lanes; ++lane) {
    const int64_t bit = trellis_bit(e.first + lane, e.quarters);
    const uint32_t window = trellis_word(e.string(column), e.bytes, bit / 8) >> bit % 8 & (trellis_states - 1);
    values[lane] = static_cast<float>(trellis_value(window, trellis_again(e.first + lane, e.quarters)));
  }
}

/// Where dots are taken: columns [begin, end) of x, whose rows are `stride` floats apart.
struct Columns {
  const float* x;
  int64_t stride;
  int64_t begin;
  int64_t end;
};

/// dots[n][lane] += weights of eight channels . x[n], summed from 0.
void dots_portable(const Eight& e, const Columns& over, int64_t batch, float* dots) {
  float values[trellis_lanes];
  float sums[trellis_dots_batch][trellis_lanes] = {};
  for (int64_t c = over.begin; c < over.end; ++c) {
    values_portable(e, c, values);
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t lane = 0; lane < trellis_lanes; ++lane) sums[n][lane] += values[lane] * over.x[n * over.stride + c];
  }
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t lane = 0; lane < trellis_lanes; ++lane) dots[n * trellis_lanes + lane] += sums[n][lane];
}

#if defined(__x86_64__)
#define NIBBLENET_TRELLIS_AVX2 __attribute__((target("avx2,fma"))) inline

/// Reads the windows of eight channels from two words, which hold four windows each.
struct EightAvx2 {
  __m256i shifts, state_offset;
  int64_t byte[2];
  bool inside;  ///< no word goes beyond the string's end
};

NIBBLENET_TRELLIS_AVX2 EightAvx2 prepare_eight(const Eight& e) {
  EightAvx2 r;
  alignas(32) int32_t shifts[trellis_lanes], offset[trellis_lanes];
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t bit = trellis_bit(e.first + 4 * half, e.quarters);
    r.byte[half] = bit / 8;
    for (int64_t i = 4 * half; i < 4 * half + 4; ++i) {
      shifts[i] = static_cast<int32_t>(trellis_bit(e.first + i, e.quarters) - bit + bit % 8);
      offset[i] = trellis_again(e.first + i, e.quarters) ? trellis_states : 0;
    }
  }
  r.shifts = _mm256_load_si256(reinterpret_cast<const __m256i*>(shifts));
  r.state_offset = _mm256_load_si256(reinterpret_cast<const __m256i*>(offset));
  r.inside = r.byte[1] + 4 <= e.bytes;
  return r;
}

NIBBLENET_TRELLIS_AVX2 int word_at(const uint8_t* bytes) {
  int word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

/// trellis_value() of eight windows.
NIBBLENET_TRELLIS_AVX2 __m256 values_avx2(const Eight& e, const EightAvx2& r, int64_t column) {
  const uint8_t* string = e.string(column);
  int low, high;
  if (r.inside) {
    low = word_at(string + r.byte[0]);
    high = word_at(string + r.byte[1]);
  } else {
    low = static_cast<int>(trellis_word(string, e.bytes, r.byte[0]));
    high = static_cast<int>(trellis_word(string, e.bytes, r.byte[1]));
  }
  const __m256i words = _mm256_set_m128i(_mm_set1_epi32(high), _mm_set1_epi32(low));
  const __m256i windows = _mm256_and_si256(_mm256_srlv_epi32(words, r.shifts), _mm256_set1_epi32(trellis_states - 1));
  const __m256i states = _mm256_add_epi32(windows, r.state_offset);
  const __m256i scrambled =
      _mm256_add_epi32(_mm256_mullo_epi32(states, _mm256_set1_epi32(static_cast<int>(trellis_factor))),
                       _mm256_set1_epi32(static_cast<int>(trellis_summand)));
  const __m256i bytes = _mm256_and_si256(scrambled, _mm256_set1_epi8(0x3F));
  const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(trellis_largest_value)));
}

template <int batch>
__attribute__((target("avx2,fma"))) void dots_of_avx2(const Eight& e, const Columns& over, float* dots) {
  const EightAvx2 r = prepare_eight(e);
  __m256 sums[batch] = {};
  for (int64_t c = over.begin; c < over.end; ++c) {
    const __m256 values = values_avx2(e, r, c);
    for (int n = 0; n < batch; ++n)
      sums[n] = _mm256_fmadd_ps(values, _mm256_broadcast_ss(over.x + n * over.stride + c), sums[n]);
  }
  for (int n = 0; n < batch; ++n) {
    float* of_image = dots + n * trellis_lanes;
    _mm256_storeu_ps(of_image, _mm256_add_ps(_mm256_loadu_ps(of_image), sums[n]));
  }
}
constexpr std::array dots_by_batch = {dots_of_avx2<1>, dots_of_avx2<2>, dots_of_avx2<3>, dots_of_avx2<4>,
                                      dots_of_avx2<5>, dots_of_avx2<6>, dots_of_avx2<7>, dots_of_avx2<8>};

void dots_avx2(const Eight& e, const Columns& over, int64_t batch, float* dots) {
  dots_by_batch.at(static_cast<size_t>(batch - 1))(e, over, dots);
}

#define NIBBLENET_TRELLIS_512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))

/// Reads the windows of sixteen channels from the up to 11 bytes that hold them.
struct Sixteen {
  const uint8_t* strings;
  int64_t bytes;             ///< of a string
  int64_t byte;              ///< the first one that the windows need
  __mmask16 first, wrapped;  ///< the bytes from there to the string's end, and those at its begin
  __m128i turned;            ///< where the latter go
  __m512i index, shifts;     ///< of each window: its bytes among those, and its first bit
  __m512i state_offset;
};

NIBBLENET_TRELLIS_512 Sixteen prepare_sixteen(const Eight& e) {
  constexpr int64_t lanes = 16;
  const int64_t byte = trellis_bit(e.first, e.quarters) / 8;
  alignas(64) uint8_t index[4 * lanes];
  alignas(64) int32_t shifts[lanes], offset[lanes];
  int64_t needed = 0;
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t bit = trellis_bit(e.first + i, e.quarters) - 8 * byte;
    for (int64_t j = 0; j < 4; ++j) index[4 * i + j] = static_cast<uint8_t>(bit / 8 + j);
    shifts[i] = static_cast<int32_t>(bit % 8);
    offset[i] = trellis_again(e.first + i, e.quarters) ? trellis_states : 0;
    needed = std::max(needed, (bit + trellis_window + 7) / 8);
  }
  const int64_t before_end = std::min(needed, e.bytes - byte);
  alignas(16) int8_t turned[16];
  for (int64_t i = 0; i < 16; ++i) turned[i] = static_cast<int8_t>(i - before_end);  // below 0: a zero
  return {.strings = e.strings,
          .bytes = e.bytes,
          .byte = byte,
          .first = static_cast<__mmask16>((1U << before_end) - 1U),
          .wrapped = static_cast<__mmask16>((1U << (needed - before_end)) - 1U),
          .turned = _mm_load_si128(reinterpret_cast<const __m128i*>(turned)),
          .index = _mm512_load_si512(index),
          .shifts = _mm512_load_si512(shifts),
          .state_offset = _mm512_load_si512(offset)};
}

/// trellis_value() of sixteen windows.
NIBBLENET_TRELLIS_512 inline __m512 values_512(const Sixteen& r, int64_t column) {
  const uint8_t* string = r.strings + column * r.bytes;
  __m128i bytes = _mm_maskz_loadu_epi8(r.first, string + r.byte);
  if (r.wrapped != 0) bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(_mm_maskz_loadu_epi8(r.wrapped, string), r.turned));
  const __m512i words = _mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(0xFFFF, bytes), r.index);
  const __m512i windows =
      _mm512_and_si512(_mm512_maskz_srlv_epi32(0xFFFF, words, r.shifts), _mm512_set1_epi32(trellis_states - 1));
  const __m512i states = _mm512_add_epi32(windows, r.state_offset);
  const __m512i scrambled =
      _mm512_add_epi32(_mm512_mullo_epi32(states, _mm512_set1_epi32(static_cast<int>(trellis_factor))),
                       _mm512_set1_epi32(static_cast<int>(trellis_summand)));
  const __m512i numbers = _mm512_and_si512(scrambled, _mm512_set1_epi8(0x3F));
  return _mm512_maskz_cvtepi32_ps(
      0xFFFF, _mm512_dpbusd_epi32(_mm512_set1_epi32(-trellis_largest_value), numbers, _mm512_set1_epi8(1)));
}

/// dots_avx2() of two neighbouring eights, with the same bits.
template <int batch>
NIBBLENET_TRELLIS_512 void dots_of_512(const Eight& e, const Columns& over, float* dots) {
  const Sixteen r = prepare_sixteen(e);
  __m512 sums[batch] = {};
  for (int64_t c = over.begin; c < over.end; ++c) {
    const __m512 values = values_512(r, c);
    for (int n = 0; n < batch; ++n)
      sums[n] = _mm512_fmadd_ps(values, _mm512_set1_ps(over.x[n * over.stride + c]), sums[n]);
  }
  for (int n = 0; n < batch; ++n)
    for (int half = 0; half < 2; ++half) {
      float* of_image = dots + half * trellis_dots_batch * trellis_lanes + n * trellis_lanes;
      const __m256 sum = half == 0 ? _mm512_castps512_ps256(sums[n]) : _mm512_extractf32x8_ps(sums[n], 1);
      _mm256_storeu_ps(of_image, _mm256_add_ps(_mm256_loadu_ps(of_image), sum));
    }
}
constexpr std::array dots_by_batch_512 = {dots_of_512<1>, dots_of_512<2>, dots_of_512<3>, dots_of_512<4>,
                                          dots_of_512<5>, dots_of_512<6>, dots_of_512<7>, dots_of_512<8>};

__attribute__((target("avx2,fma"))) void columns_avx2(const Eight& e, int64_t k, int64_t columns, float* values) {
  const EightAvx2 r = prepare_eight(e);
  for (int64_t c = 0; c < columns; ++c) _mm256_storeu_ps(values + c * trellis_lanes, values_avx2(e, r, k + c));
}
#endif

void decode_columns(DecodePath path, const Eight& e, int64_t k, int64_t columns, float* values) {
#if defined(__x86_64__)
  if (path != DecodePath::portable) return columns_avx2(e, k, columns, values);
#endif
  (void)path;
  for (int64_t c = 0; c < columns; ++c) values_portable(e, k + c, values + c * trellis_lanes);
}

}  // namespace

void decode_trellis(DecodePath path, const PackedView& packed, int64_t channel, int64_t rows, int64_t k,
                    int64_t columns, float* out, int64_t stride) {
  constexpr int64_t stretch = 64;  // columns: 2 KB of values
  float values[stretch * trellis_lanes];
  for (int64_t first = channel - channel % trellis_lanes; first < channel + rows; first += trellis_lanes) {
    const Eight eight(packed, first);
    const int64_t begin = std::max(first, channel), end = std::min(first + trellis_lanes, channel + rows);
    for (int64_t c = 0; c < columns; c += stretch) {
      const int64_t count = std::min(stretch, columns - c);
      decode_columns(path, eight, k + c, count, values);
      for (int64_t row = begin; row < end; ++row) {
        float* to = out + (row - channel) * stride + c;
        const float step = packed.step(row);
        const float* from = values + (row - first);
        for (int64_t i = 0; i < count; ++i) to[i] = reconstruct(from[i * trellis_lanes], 0.0F, step);
      }
    }
  }
}

void trellis_dots(DecodePath path, const PackedView& packed, int64_t channel, int64_t rows, const float* x,
                  int64_t batch, float* y) {
  constexpr int64_t stretch = 256;  // columns: their strings stay in the first-level cache for all channels
  constexpr int64_t most_eights = trellis_sequence / trellis_lanes;
  float dots[most_eights][trellis_dots_batch * trellis_lanes] = {};
  const int64_t eights = (rows + trellis_lanes - 1) / trellis_lanes;
  for (int64_t c = 0; c < packed.channel_elements; c += stretch) {
    const Columns over{x, packed.channel_elements, c, std::min(c + stretch, packed.channel_elements)};
    for (int64_t i = 0; i < eights;) {
      const Eight eight(packed, channel + i * trellis_lanes);
#if defined(__x86_64__)
      // Strings are padded, so that a whole sixteen stands behind the last eight, too.
      if (path == DecodePath::avx512 && best_instruction_set() >= InstructionSet::avx512_vnni && i % 2 == 0 &&
          eight.first % (2 * trellis_lanes) == 0) {
        dots_by_batch_512.at(static_cast<size_t>(batch - 1))(eight, over, dots[i]);
        i += 2;
        continue;
      }
      if (path != DecodePath::portable)
        dots_avx2(eight, over, batch, dots[i]);
      else
#endif
        dots_portable(eight, over, batch, dots[i]);
      ++i;
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t n = 0; n < batch; ++n)
      y[n * packed.channels + channel + row] =
          dots[row / trellis_lanes][n * trellis_lanes + row % trellis_lanes] * packed.step(channel + row);
}

}  // namespace nibblenet
