#include "kernels/cpu/narrow_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/quant/bits.h"

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

constexpr int32_t byte_zero = 128;  ///< of signed inputs in unsigned bytes
constexpr int64_t codes_at_once = 64;

/// The limits of rounded inputs: what fits a byte.
struct ByteLimits {
  float low, high;
  ByteLimits(bool is_signed, int most) : low(is_signed ? -128.0F : 0.0F), high(static_cast<float>(most)) {}
};

float float_of(uint16_t bfloat) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16); }

/// Whole numbers of up to 8 bits are bfloat16 values.
uint16_t bfloat_of_whole(int value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16);
}

// Portable kernels. The integers are those of the others; they take 16 bits, so that a group is two
// values.

int32_t group_at(const std::byte* x) {
  int32_t group;
  std::memcpy(&group, x, sizeof group);
  return group;
}

int32_t portable_group(const TileWork& t, int64_t pixel, int64_t row, int64_t group) {
  const int32_t bits = group_at(t.x[pixel] + row * t.row_bytes + 4 * group);
  return group == t.groups - 1 ? bits & t.last_group : bits;
}

void tile_portable_int(const TileWork& t, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    int32_t* sums = static_cast<int32_t*>(t.sums) + i * panel_channels;
    if (!t.add) std::fill_n(sums, panel_channels, 0);
    const std::byte* panel = t.panel;
    for (int64_t r = 0; r < t.rows; ++r, panel += t.panel_gap)
      for (int64_t g = 0; g < t.groups; ++g, panel += 4 * t.width) {
        const auto x = std::bit_cast<std::array<int16_t, 2>>(portable_group(t, i, r, g));
        for (int64_t k = 0; k < t.width; ++k) {
          int16_t w[2];
          std::memcpy(w, panel + 4 * k, sizeof w);
          sums[k] += x[0] * w[0] + x[1] * w[1];
        }
      }
  }
}

void tile_portable_bfloat(const TileWork& t, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    float* sums = static_cast<float*>(t.sums) + i * panel_channels;
    if (!t.add) std::fill_n(sums, panel_channels, 0.0F);
    const std::byte* panel = t.panel;
    for (int64_t r = 0; r < t.rows; ++r, panel += t.panel_gap)
      for (int64_t g = 0; g < t.groups; ++g, panel += 4 * t.width) {
        const auto x = std::bit_cast<std::array<uint16_t, 2>>(portable_group(t, i, r, g));
        const float x0 = float_of(x[0]), x1 = float_of(x[1]);
        for (int64_t k = 0; k < t.width; ++k) {
          uint32_t w;
          std::memcpy(&w, panel + 4 * k, sizeof w);
          sums[k] += x0 * std::bit_cast<float>(w << 16);
          sums[k] += x1 * std::bit_cast<float>(w & 0xFFFF0000U);
        }
      }
  }
}

/// A number, rounded to a whole one that fits a byte.
int16_t rounded(float x, float inverse, const ByteLimits& limits) {
  const float scaled = x * inverse;
  return static_cast<int16_t>(std::lrint(scaled > limits.low ? std::min(scaled, limits.high) : limits.low));
}

/// Outputs of channels [first, channels).
template <class Sum>
bool finish_from(const FinishWork& f, int64_t first) {
  const ByteLimits limits(false, f.most);
  bool finite = true;
  for (int64_t p = 0; p < f.pixels; ++p)
    for (int64_t k = first; k < f.channels; ++k) {
      Sum sum = static_cast<const Sum*>(f.sums)[p * panel_channels + k];
      if constexpr (std::is_same_v<Sum, int32_t>)
        if (f.corrections != nullptr) sum -= f.corrections[k];
      float y = std::fma(static_cast<float>(sum), f.factors[k] * f.image, f.bias[k]);
      if (f.relu && y < 0.0F) y = 0.0F;
      if (f.y != nullptr) {
        f.y[p * f.stride + k] = y;
        continue;
      }
      finite = finite && std::isfinite(y);
      f.bytes[p * f.stride + k] = static_cast<uint8_t>(rounded(y, f.inverse, limits));
    }
  return finite;
}
template <class Sum>
bool finish_portable(const FinishWork& f) {
  return finish_from<Sum>(f, 0);
}

void widen_portable(const uint8_t* x, int64_t count, std::byte* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int16_t value = x[i];
    std::memcpy(out + 2 * i, &value, sizeof value);
  }
}

bool round_portable_int(const RoundWork& w) {
  const ByteLimits limits(w.is_signed, w.most);
  bool finite = true;
  for (int64_t i = 0; i < w.count; ++i) {
    finite = finite && std::isfinite(w.x[i]);
    const int16_t value = rounded(w.x[i], w.inverse, limits);
    std::memcpy(w.out + 2 * i, &value, sizeof value);
  }
  return finite;
}

bool round_portable_bfloat(const RoundWork& w) {
  for (int64_t i = 0; i < w.count; ++i) {
    const uint16_t rounded = bfloat16_of(w.x[i]);
    std::memcpy(w.out + 2 * i, &rounded, sizeof rounded);
  }
  return true;
}

/// The zero point of code i.
int zero_of(const UnpackWork& u, int64_t i, int64_t group) {
  return u.zero_points == nullptr ? 0 : u.zero_points[i / group % u.width];
}

void unpack_portable_int(const UnpackWork& u) {
  for (int64_t i = 0; i < u.count; ++i) {
    const auto value = static_cast<int16_t>(u.values->bytes[read_field(u.codes, i, u.bits)] - zero_of(u, i, 2));
    std::memcpy(u.out + 2 * i, &value, sizeof value);
  }
}

void unpack_portable_bfloat(const UnpackWork& u) {
  for (int64_t i = 0; i < u.count; ++i) {
    const uint32_t code = read_field(u.codes, i, u.bits);
    const uint16_t value =
        u.zero_points != nullptr ? bfloat_of_whole(static_cast<int>(code) - zero_of(u, i, 2)) : u.values->bfloats[code];
    std::memcpy(u.out + 2 * i, &value, sizeof value);
  }
}

#if defined(__x86_64__)

#define NIBBLENET_AVX2 __attribute__((target("avx2,fma")))
#define NIBBLENET_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2")))
#define NIBBLENET_VBMI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vbmi,avx2,fma,bmi2")))
#define NIBBLENET_VNNI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,avx2,fma,bmi2")))
#define NIBBLENET_BF16 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma,bmi2")))

// The body of a tile kernel, which `Attribute`, `Vector`, `dot` and the others make one of an
// instruction set: a template would not inherit its caller's target.
#define NIBBLENET_TILE(NAME, ATTRIBUTE, VECTOR, LANES, ZERO, LOAD, STORE, BROADCAST, DOT)                              \
  template <int pixels, int vectors, bool masked>                                                                      \
  ATTRIBUTE void NAME(const TileWork& t, int64_t first) {                                                              \
    VECTOR sums[pixels][vectors];                                                                                      \
    auto* const kept = static_cast<std::byte*>(t.sums) + 4 * first;                                                    \
    _Pragma("GCC unroll 8") for (int i = 0; i < pixels; ++i) _Pragma("GCC unroll 4") for (int v = 0; v < vectors; ++v) \
        sums[i][v] = t.add ? LOAD(kept + 4 * (i * panel_channels + v * (LANES))) : ZERO;                               \
    const std::byte* panel = t.panel + 4 * first;                                                                      \
    for (int64_t r = 0; r < t.rows; ++r, panel += t.panel_gap) {                                                       \
      const int64_t begin = r * t.row_bytes, end = begin + 4 * t.groups;                                               \
      for (int64_t at = begin; at < end; at += 4, panel += 4 * t.width) {                                              \
        const int32_t kept_bits = masked && at + 4 == end ? t.last_group : -1;                                         \
        VECTOR weights[vectors];                                                                                       \
        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; ++v) weights[v] = LOAD(panel + 4 * v * (LANES));          \
        _Pragma("GCC unroll 8") for (int i = 0; i < pixels; ++i) {                                                     \
          const VECTOR x = BROADCAST(group_at(t.x[i] + at) & kept_bits);                                               \
          _Pragma("GCC unroll 4") for (int v = 0; v < vectors; ++v) sums[i][v] = DOT(sums[i][v], x, weights[v]);       \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 8") for (int i = 0; i < pixels; ++i) _Pragma("GCC unroll 4") for (int v = 0; v < vectors; ++v) \
        STORE(kept + 4 * (i * panel_channels + v * (LANES)), sums[i][v]);                                              \
  }

#define NIBBLENET_LOAD_512(P) _mm512_loadu_si512(P)
#define NIBBLENET_STORE_512(P, V) _mm512_storeu_si512(P, V)
#define NIBBLENET_LOAD_512PS(P) _mm512_loadu_ps(P)
#define NIBBLENET_STORE_512PS(P, V) _mm512_storeu_ps(P, V)
#define NIBBLENET_LOAD_256(P) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(P))
#define NIBBLENET_STORE_256(P, V) _mm256_storeu_si256(reinterpret_cast<__m256i*>(P), V)
#define NIBBLENET_DOT_PAIRS_512(S, X, W) _mm512_add_epi32(S, _mm512_madd_epi16(X, W))
#define NIBBLENET_DOT_PAIRS_256(S, X, W) _mm256_add_epi32(S, _mm256_madd_epi16(X, W))
#define NIBBLENET_BROADCAST_BF(X) _mm512_castsi512_ps(_mm512_set1_epi32(X))
#define NIBBLENET_DOT_BF(S, X, W) _mm512_dpbf16_ps(S, reinterpret_cast<__m512bh>(X), reinterpret_cast<__m512bh>(W))

NIBBLENET_TILE(tile_vnni, NIBBLENET_VNNI, __m512i, 16, _mm512_setzero_si512(), NIBBLENET_LOAD_512, NIBBLENET_STORE_512,
               _mm512_set1_epi32, _mm512_dpbusd_epi32)
NIBBLENET_TILE(tile_pairs_512, NIBBLENET_AVX512, __m512i, 16, _mm512_setzero_si512(), NIBBLENET_LOAD_512,
               NIBBLENET_STORE_512, _mm512_set1_epi32, NIBBLENET_DOT_PAIRS_512)
NIBBLENET_TILE(tile_pairs_256, NIBBLENET_AVX2, __m256i, 8, _mm256_setzero_si256(), NIBBLENET_LOAD_256,
               NIBBLENET_STORE_256, _mm256_set1_epi32, NIBBLENET_DOT_PAIRS_256)
NIBBLENET_TILE(tile_bf16, NIBBLENET_BF16, __m512, 16, _mm512_setzero_ps(), NIBBLENET_LOAD_512PS, NIBBLENET_STORE_512PS,
               NIBBLENET_BROADCAST_BF, NIBBLENET_DOT_BF)

using TileOf = void (*)(const TileWork&, int64_t first);

/// Defines a kernel for any panel width: whole tiles of four vectors, or the fewer of the last
/// panel.
#define NIBBLENET_BY_SIZE(NAME)                                                                                     \
  template <bool masked>                                                                                            \
  constexpr TileOf NAME##_by_size[4][tile_pixels] = {{NAME<1, 1, masked>, NAME<2, 1, masked>, NAME<3, 1, masked>,   \
                                                      NAME<4, 1, masked>, NAME<5, 1, masked>, NAME<6, 1, masked>},  \
                                                     {NAME<1, 2, masked>, NAME<2, 2, masked>, NAME<3, 2, masked>,   \
                                                      NAME<4, 2, masked>, NAME<5, 2, masked>, NAME<6, 2, masked>},  \
                                                     {NAME<1, 3, masked>, NAME<2, 3, masked>, NAME<3, 3, masked>,   \
                                                      NAME<4, 3, masked>, NAME<5, 3, masked>, NAME<6, 3, masked>},  \
                                                     {NAME<1, 4, masked>, NAME<2, 4, masked>, NAME<3, 4, masked>,   \
                                                      NAME<4, 4, masked>, NAME<5, 4, masked>, NAME<6, 4, masked>}}; \
  void NAME(const TileWork& t, int64_t pixels) {                                                                    \
    const auto& by_size = t.last_group == -1 ? NAME##_by_size<false> : NAME##_by_size<true>;                        \
    by_size[t.width / 16 - 1][pixels - 1](t, 0);                                                                    \
  }
NIBBLENET_BY_SIZE(tile_vnni)
NIBBLENET_BY_SIZE(tile_pairs_512)
NIBBLENET_BY_SIZE(tile_bf16)

template <bool masked>
constexpr TileOf tile_pairs_256_by_size[tile_pixels] = {tile_pairs_256<1, 2, masked>, tile_pairs_256<2, 2, masked>,
                                                        tile_pairs_256<3, 2, masked>, tile_pairs_256<4, 2, masked>,
                                                        tile_pairs_256<5, 2, masked>, tile_pairs_256<6, 2, masked>};
void tile_pairs_256(const TileWork& t, int64_t pixels) {
  const auto& by_size = t.last_group == -1 ? tile_pairs_256_by_size<false> : tile_pairs_256_by_size<true>;
  for (int64_t first = 0; first < t.width; first += 16) by_size[pixels - 1](t, first);
}

/// The lanes of the next 16 floats of `count` that exist.
NIBBLENET_AVX512 inline __mmask16 lanes_of(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1U << count) - 1U);
}

// y = max(0, y) in this order keeps NaN.

/// Sixteen floats, rounded to whole numbers that fit a byte.
NIBBLENET_AVX512 inline __m512i rounded_512(__m512 x, __m512 inverse, __m512 low, __m512 high) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(x, inverse), low), high));
}
/// Which are NaN or infinite.
NIBBLENET_AVX512 inline uint32_t not_finite_512(__m512 x) { return _mm512_fpclass_ps_mask(x, 0x99); }

NIBBLENET_AVX512 bool finish_512(const FinishWork& f, bool whole) {
  const ByteLimits limits(false, f.most);
  const __m512 image = _mm512_set1_ps(f.image), inverse = _mm512_set1_ps(f.inverse);
  const __m512 low = _mm512_set1_ps(limits.low), high = _mm512_set1_ps(limits.high);
  uint32_t wrong = 0;
  for (int64_t k = 0; k < f.channels; k += 16) {
    const __mmask16 mask = lanes_of(f.channels - k);
    const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(f.factors + k), image);
    const __m512 bias = _mm512_maskz_loadu_ps(mask, f.bias + k);
    const __m512i correction =
        f.corrections != nullptr ? _mm512_loadu_si512(f.corrections + k) : _mm512_setzero_si512();
    for (int64_t p = 0; p < f.pixels; ++p) {
      const auto* sums = static_cast<const std::byte*>(f.sums) + 4 * (p * panel_channels + k);
      const __m512 sum =
          whole ? _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums), correction)) : _mm512_loadu_ps(sums);
      __m512 y = _mm512_fmadd_ps(sum, factor, bias);
      if (f.relu) y = _mm512_maskz_max_ps(0xFFFF, _mm512_setzero_ps(), y);
      if (f.y != nullptr) {
        _mm512_mask_storeu_ps(f.y + p * f.stride + k, mask, y);
        continue;
      }
      wrong |= not_finite_512(y) & mask;
      const __m128i bytes = _mm512_cvtepi32_epi8(rounded_512(y, inverse, low, high));
      _mm_mask_storeu_epi8(f.bytes + p * f.stride + k, mask, bytes);
    }
  }
  return wrong == 0;
}
bool finish_512_int(const FinishWork& f) { return finish_512(f, true); }
bool finish_512_bfloat(const FinishWork& f) { return finish_512(f, false); }

/// Which are NaN or infinite: all bits of them.
NIBBLENET_AVX2 inline __m256 not_finite_256(__m256 x) {
  const __m256 magnitude = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)));
  return _mm256_cmp_ps(magnitude, _mm256_set1_ps(std::numeric_limits<float>::max()), _CMP_NLE_UQ);
}
NIBBLENET_AVX2 inline __m256i rounded_256(__m256 x, __m256 inverse, __m256 low, __m256 high) {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(x, inverse), low), high));
}

NIBBLENET_AVX2 bool finish_256_int(const FinishWork& f) {
  const ByteLimits limits(false, f.most);
  const __m256 image = _mm256_set1_ps(f.image), inverse = _mm256_set1_ps(f.inverse);
  const __m256 low = _mm256_set1_ps(limits.low), high = _mm256_set1_ps(limits.high);
  __m256 wrong = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 8 <= f.channels; k += 8) {
    const __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(f.factors + k), image);
    const __m256 bias = _mm256_loadu_ps(f.bias + k);
    for (int64_t p = 0; p < f.pixels; ++p) {
      const auto* sums = static_cast<const int32_t*>(f.sums) + p * panel_channels + k;
      const __m256 sum = _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)));
      __m256 y = _mm256_fmadd_ps(sum, factor, bias);
      if (f.relu) y = _mm256_max_ps(_mm256_setzero_ps(), y);
      if (f.y != nullptr) {
        _mm256_storeu_ps(f.y + p * f.stride + k, y);
        continue;
      }
      wrong = _mm256_or_ps(wrong, not_finite_256(y));
      const __m256i whole = rounded_256(y, inverse, low, high);
      const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(f.bytes + p * f.stride + k), _mm_packus_epi16(pairs, pairs));
    }
  }
  return finish_from<int32_t>(f, k) && _mm256_movemask_ps(wrong) == 0;
}

void widen_bytes(const uint8_t* x, int64_t count, std::byte* out) { std::memcpy(out, x, static_cast<size_t>(count)); }

NIBBLENET_AVX2 void widen_256(const uint8_t* x, int64_t count, std::byte* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    NIBBLENET_STORE_256(out + 2 * i, _mm256_cvtepu8_epi16(sixteen));
  }
  widen_portable(x + i, count - i, out + 2 * i);
}

/// Into bytes; those of signed inputs are 128 more.
NIBBLENET_AVX512 bool round_bytes(const RoundWork& w) {
  const ByteLimits limits(w.is_signed, w.most);
  const __m512 inverse = _mm512_set1_ps(w.inverse);
  const __m512 low = _mm512_set1_ps(limits.low), high = _mm512_set1_ps(limits.high);
  const __m512i zero = _mm512_set1_epi32(w.is_signed ? byte_zero : 0);
  uint32_t wrong = 0;
  for (int64_t i = 0; i < w.count; i += 16) {
    const __mmask16 mask = lanes_of(w.count - i);
    const __m512 x = _mm512_maskz_loadu_ps(mask, w.x + i);
    wrong |= not_finite_512(x);
    const __m512i whole = _mm512_add_epi32(rounded_512(x, inverse, low, high), zero);
    _mm_mask_storeu_epi8(w.out + i, mask, _mm512_cvtepi32_epi8(whole));
  }
  return wrong == 0;
}

/// Into whole numbers of 16 bits.
NIBBLENET_AVX512 bool round_pairs_512(const RoundWork& w) {
  const ByteLimits limits(w.is_signed, w.most);
  const __m512 inverse = _mm512_set1_ps(w.inverse);
  const __m512 low = _mm512_set1_ps(limits.low), high = _mm512_set1_ps(limits.high);
  uint32_t wrong = 0;
  for (int64_t i = 0; i < w.count; i += 16) {
    const __mmask16 mask = lanes_of(w.count - i);
    const __m512 x = _mm512_maskz_loadu_ps(mask, w.x + i);
    wrong |= not_finite_512(x);
    _mm256_mask_storeu_epi16(w.out + 2 * i, mask, _mm512_cvtepi32_epi16(rounded_512(x, inverse, low, high)));
  }
  return wrong == 0;
}

NIBBLENET_AVX2 bool round_pairs_256(const RoundWork& w) {
  const ByteLimits limits(w.is_signed, w.most);
  const __m256 inverse = _mm256_set1_ps(w.inverse);
  const __m256 low = _mm256_set1_ps(limits.low), high = _mm256_set1_ps(limits.high);
  __m256 wrong = _mm256_setzero_ps();
  const auto eight = [&](const float* from) NIBBLENET_AVX2 {
    const __m256 x = _mm256_loadu_ps(from);
    wrong = _mm256_or_ps(wrong, not_finite_256(x));
    return rounded_256(x, inverse, low, high);
  };
  int64_t i = 0;
  for (; i + 16 <= w.count; i += 16) {
    const __m256i low_eight = eight(w.x + i), high_eight = eight(w.x + i + 8);
    const __m256i mixed = _mm256_packs_epi32(low_eight, high_eight);  // of halves of each
    NIBBLENET_STORE_256(w.out + 2 * i, _mm256_permute4x64_epi64(mixed, 0b11011000));
  }
  const bool finite = _mm256_movemask_ps(wrong) == 0;
  RoundWork rest = w;
  rest.x += i;
  rest.out += 2 * i;
  rest.count -= i;
  return round_portable_int(rest) && finite;
}

NIBBLENET_BF16 bool round_bf16(const RoundWork& w) {
  for (int64_t i = 0; i < w.count; i += 16) {
    const __mmask16 mask = lanes_of(w.count - i);
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, w.x + i)));
    _mm256_mask_storeu_epi16(w.out + 2 * i, mask, rounded);
  }
  return true;
}

/// 64 codes, a byte each.
template <int bits>
NIBBLENET_VBMI inline __m512i codes_vbmi(const uint8_t* bytes) {
  if constexpr (bits == 8) {
    return _mm512_loadu_si512(bytes);
  } else if constexpr (bits == 4) {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    return _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
  } else {
    // Eight codes from `bits` bytes in each lane of 64 bits.
    alignas(64) static constexpr auto places = [] {
      std::array<uint8_t, 64> from{};
      for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>((i / 8 * bits + i % 8) % 64);
      return from;
    }();
    constexpr uint64_t shifts = [] {
      uint64_t all = 0;
      for (uint64_t i = 0; i < 8; ++i) all |= i * bits << 8 * i;
      return all;
    }();
    const __m512i lanes = _mm512_permutexvar_epi8(_mm512_load_si512(places.data()), _mm512_loadu_si512(bytes));
    const __m512i codes = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<int64_t>(shifts)), lanes);
    return _mm512_and_si512(codes, _mm512_set1_epi8((1 << bits) - 1));
  }
}

/// A table of bytes in registers.
struct ByteTable {
  __m512i part[4];
};
template <int bits>
NIBBLENET_VBMI inline __m512i look_up_vbmi(const ByteTable& table, __m512i codes) {
  if constexpr (bits <= 4) {
    return _mm512_shuffle_epi8(table.part[0], codes);
  } else if constexpr (bits <= 6) {
    return _mm512_permutexvar_epi8(codes, table.part[0]);
  } else {
    const __m512i low = _mm512_permutex2var_epi8(table.part[0], codes, table.part[1]);
    if constexpr (bits == 7) return low;
    const __m512i high = _mm512_permutex2var_epi8(table.part[2], codes, table.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
  }
}

template <int bits>
NIBBLENET_VBMI void unpack_bytes_vbmi(const UnpackWork& u) {
  const int8_t* bytes = u.values->bytes.data();
  ByteTable table;
  if constexpr (bits <= 4)
    table.part[0] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  else
    for (int i = 0; i < 4; ++i) table.part[i] = _mm512_loadu_si512(bytes + 64 * i);
  const uint8_t* codes = u.codes;
  for (int64_t i = 0; i < u.count; i += codes_at_once, codes += 8 * bits)
    _mm512_storeu_si512(u.out + i, look_up_vbmi<bits>(table, codes_vbmi<bits>(codes)));
}

/// 64 codes, a byte each, where there is no permutation of bytes.
NIBBLENET_AVX512 inline void codes_bmi(const uint8_t* bytes, int bits, uint8_t* codes) {
  const uint64_t one_per_byte = ((1U << bits) - 1U) * 0x0101010101010101ULL;
  for (int i = 0; i < 8; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes + i * bits, sizeof word);
    word = _pdep_u64(word, one_per_byte);
    std::memcpy(codes + 8 * i, &word, sizeof word);
  }
}

NIBBLENET_AVX512 void unpack_bytes_512(const UnpackWork& u) {
  alignas(64) uint8_t codes[codes_at_once];
  const int8_t* bytes = u.values->bytes.data();
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  for (int64_t i = 0; i < u.count; i += codes_at_once) {
    codes_bmi(u.codes + i * u.bits / 8, u.bits, codes);
    if (u.bits <= 4)
      _mm512_storeu_si512(u.out + i, _mm512_shuffle_epi8(table, _mm512_load_si512(codes)));
    else
      for (int64_t j = 0; j < codes_at_once; ++j) u.out[i + j] = static_cast<std::byte>(bytes[codes[j]]);
  }
}

constexpr std::array<void (*)(const UnpackWork&), 9> unpack_bytes_by_bits = {nullptr,
                                                                             nullptr,
                                                                             unpack_bytes_vbmi<2>,
                                                                             unpack_bytes_vbmi<3>,
                                                                             unpack_bytes_vbmi<4>,
                                                                             unpack_bytes_vbmi<5>,
                                                                             unpack_bytes_vbmi<6>,
                                                                             unpack_bytes_vbmi<7>,
                                                                             unpack_bytes_vbmi<8>};

/// Into bytes. `vbmi`: whether bytes can be permuted.
template <bool vbmi>
void unpack_bytes(const UnpackWork& u) {
  if constexpr (vbmi)
    unpack_bytes_by_bits[static_cast<size_t>(u.bits)](u);
  else
    unpack_bytes_512(u);
  if (u.zero_points == nullptr) return;
  std::array<int8_t, 4 * panel_channels> zeros;
  const int64_t period = 4 * u.width;
  for (int64_t i = 0; i < period; ++i) zeros[static_cast<size_t>(i)] = static_cast<int8_t>(u.zero_points[i / 4]);
  auto* out = reinterpret_cast<int8_t*>(u.out);
  for (int64_t i = 0; i < u.count; i += period)
    for (int64_t j = 0; j < period; ++j) out[i + j] = static_cast<int8_t>(out[i + j] - zeros[static_cast<size_t>(j)]);
}

/// Into whole numbers of 16 bits. Tables of up to 16 values are looked up in a register.
NIBBLENET_AVX2 void unpack_pairs_256(const UnpackWork& u) {
  if (u.bits != 4) return unpack_portable_int(u);
  const auto* bytes = reinterpret_cast<const __m128i*>(u.values->bytes.data());
  const __m128i table = _mm_loadu_si128(bytes);
  for (int64_t i = 0; i < u.count; i += 16) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(u.codes + i / 2));
    const __m128i codes = _mm_and_si128(_mm_unpacklo_epi8(eight, _mm_srli_epi16(eight, 4)), _mm_set1_epi8(15));
    NIBBLENET_STORE_256(u.out + 2 * i, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, codes)));
  }
  if (u.zero_points == nullptr) return;
  const int64_t period = 2 * u.width;
  for (int64_t i = 0; i < u.count; ++i) {
    int16_t value;
    std::memcpy(&value, u.out + 2 * i, sizeof value);
    value = static_cast<int16_t>(value - u.zero_points[i % period / 2]);
    std::memcpy(u.out + 2 * i, &value, sizeof value);
  }
}

/// Into bfloat16, by a table of up to 32 values in a register.
template <int bits>
NIBBLENET_VBMI void unpack_bf16_vbmi(const UnpackWork& u) {
  const __m512i table = _mm512_loadu_si512(u.values->bfloats.data());
  const uint8_t* from = u.codes;
  for (int64_t i = 0; i < u.count; i += codes_at_once, from += 8 * bits) {
    const __m512i codes = codes_vbmi<bits>(from);
    const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(codes));
    const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(codes, 1));
    _mm512_storeu_si512(u.out + 2 * i, _mm512_permutexvar_epi16(low, table));
    _mm512_storeu_si512(u.out + 2 * i + 64, _mm512_permutexvar_epi16(high, table));
  }
}
constexpr std::array<void (*)(const UnpackWork&), 6> unpack_bf16_by_bits = {
    nullptr, nullptr, unpack_bf16_vbmi<2>, unpack_bf16_vbmi<3>, unpack_bf16_vbmi<4>, unpack_bf16_vbmi<5>};

void unpack_bf16(const UnpackWork& u) {
  if (u.bits > 5 || u.zero_points != nullptr) return unpack_portable_bfloat(u);
  unpack_bf16_by_bits[static_cast<size_t>(u.bits)](u);
}

/// With and without the permutation of bytes.
template <bool vbmi>
constexpr NarrowKernels kernels_vnni = {"VNNI",         4,           byte_zero,   tile_vnni,
                                        finish_512_int, widen_bytes, round_bytes, unpack_bytes<vbmi>};
constexpr NarrowKernels kernels_avx512 = {
    "AVX-512", 2, 0, tile_pairs_512, finish_512_int, widen_256, round_pairs_512, unpack_pairs_256};
constexpr NarrowKernels kernels_avx2 = {
    "AVX2", 2, 0, tile_pairs_256, finish_256_int, widen_256, round_pairs_256, unpack_pairs_256};
template <bool vbmi>
constexpr NarrowKernels kernels_bf16 = {
    "BF16", 2, 0, tile_bf16, finish_512_bfloat, nullptr, round_bf16, vbmi ? unpack_bf16 : unpack_portable_bfloat};
#endif

constexpr NarrowKernels kernels_portable_int = {
    "portable",         2, 0, tile_portable_int, finish_portable<int32_t>, widen_portable, round_portable_int,
    unpack_portable_int};
constexpr NarrowKernels kernels_portable_bfloat = {"portable",
                                                   2,
                                                   0,
                                                   tile_portable_bfloat,
                                                   finish_portable<float>,
                                                   nullptr,
                                                   round_portable_bfloat,
                                                   unpack_portable_bfloat};

}  // namespace

const NarrowKernels& narrow_kernels(Precision precision, InstructionSet set, bool vbmi) {
  const bool bytes = precision == Precision::int8;
#if defined(__x86_64__)
  if (!bytes && set >= InstructionSet::avx512_bf16) return vbmi ? kernels_bf16<true> : kernels_bf16<false>;
  if (bytes && set >= InstructionSet::avx512_vnni) return vbmi ? kernels_vnni<true> : kernels_vnni<false>;
  if (bytes && set >= InstructionSet::avx512) return kernels_avx512;
  if (bytes && set >= InstructionSet::avx2) return kernels_avx2;
#endif
  (void)set, (void)vbmi;
  return bytes ? kernels_portable_int : kernels_portable_bfloat;
}

bool has_fast_products(Precision precision, InstructionSet set) {
  if (precision == Precision::int8) return set >= InstructionSet::avx2;
  if (precision == Precision::bfloat16) return set >= InstructionSet::avx512_bf16;
  return precision == Precision::float32;
}

float largest_magnitude(const float* x, int64_t count) {
  // Magnitudes are ordered like their bits, infinity and NaN behind all numbers.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFU);
  return std::bit_cast<float>(largest);
}

uint16_t bfloat16_of(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t exponent = bits & 0x7F800000U;
  if (exponent == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000U);
  if (exponent == 0x7F800000U)  // NaN becomes a quiet one
    return static_cast<uint16_t>(bits >> 16 | ((bits & 0x007FFFFFU) != 0 ? 0x40U : 0U));
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace nibblenet
