#include "kernels/cpu/minimal_filtering.h"

namespace nibblenet {
namespace {

#define NIBBLENET_INLINE inline __attribute__((always_inline))
// The turns of the next loop read nothing that another one writes.
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wignored-attributes"  // it knows no prefer-vector-width
#define NIBBLENET_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define NIBBLENET_INDEPENDENT _Pragma("GCC ivdep")
#endif

/// What is added to a difference of inputs: bytes have no sign.
template <class T>
constexpr int zero_of_differences = sizeof(T) == 1 ? 128 : 0;

// The bodies of the kernels. They are inlined into functions of an instruction set, for which the
// compiler makes vectors of their loops. `T` is uint8_t or int16_t; bytes of weights wrap as signed
// ones do.

template <class T, int columns>
NIBBLENET_INLINE void filter_inputs(const std::byte* row, int64_t pairs, int64_t channels, std::byte* out) {
  constexpr int zero = zero_of_differences<T>;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const T* const d = reinterpret_cast<const T*>(row) + 2 * pair * channels;
    T* const to = reinterpret_cast<T*>(out) + pair * pair_factors(columns) * channels;
    NIBBLENET_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) {
      const int d0 = d[c], d1 = d[channels + c], d2 = d[2 * channels + c], d3 = d[3 * channels + c];
      const auto put = [&](int64_t factor, int value) __attribute__((always_inline)) {
        to[factor * channels + c] = static_cast<T>(value);
      };
      constexpr int64_t odd = own_factors(columns), shared = 2 * odd;
      put(0, d0 - d2 + zero);
      put(odd, d1 - d3 + zero);
      put(shared, d1 + d2);
      put(shared + 1, d2 - d1 + zero);
      if constexpr (columns == 5) {
        const int d4 = d[4 * channels + c], d5 = d[5 * channels + c];
        put(1, d3 - d4 + zero);
        put(odd + 1, d4 - d5 + zero);
        put(shared + 2, d4);
      }
    }
  }
}

template <class T, int columns>
NIBBLENET_INLINE void filter_weights(const std::byte* row, int64_t stride, int64_t count, std::byte* out,
                                     int64_t out_stride) {
  const T* const g = reinterpret_cast<const T*>(row);
  T* const to = reinterpret_cast<T*>(out);
  NIBBLENET_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const int g0 = g[i], g1 = g[stride + i], g2 = g[2 * stride + i];
    const auto put = [&](int64_t factor, int value) __attribute__((always_inline)) {
      to[factor * out_stride + i] = static_cast<T>(value);
    };
    constexpr int64_t odd = own_factors(columns), shared = 2 * odd;
    put(0, g0);
    put(odd, -g2);
    put(shared, g0 + g1 + g2);
    put(shared + 1, g0 - g1 + g2);
    if constexpr (columns == 5) {
      const int g3 = g[3 * stride + i], g4 = g[4 * stride + i];
      put(1, g3);
      put(odd + 1, -g4);
      put(shared + 2, g3 + g4);
    }
  }
}

NIBBLENET_INLINE void filter_sums(int32_t* even, int32_t* odd, const int32_t* both, int64_t count) {
  NIBBLENET_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const int32_t m1 = even[i], m2 = odd[i], more = both != nullptr ? both[i] : 0;
    even[i] = ((m1 + m2) >> 1) + more;
    odd[i] = ((m1 - m2) >> 1) + more;
  }
}

/// Defines the kernels of an instruction set.
#define NIBBLENET_FILTER(NAME, ATTRIBUTE)                                                               \
  template <class T, int columns>                                                                       \
  ATTRIBUTE void inputs_##NAME(const std::byte* x, int64_t pairs, int64_t channels, std::byte* out) {   \
    filter_inputs<T, columns>(x, pairs, channels, out);                                                 \
  }                                                                                                     \
  template <class T, int columns>                                                                       \
  ATTRIBUTE void weights_##NAME(const std::byte* w, int64_t stride, int64_t count, std::byte* out,      \
                                int64_t out_stride) {                                                   \
    filter_weights<T, columns>(w, stride, count, out, out_stride);                                      \
  }                                                                                                     \
  ATTRIBUTE void sums_##NAME(int32_t* even, int32_t* odd, const int32_t* both, int64_t count) {         \
    filter_sums(even, odd, both, count);                                                                \
  }                                                                                                     \
  template <class T>                                                                                    \
  constexpr FilterKernels filter_##NAME[2] = {{inputs_##NAME<T, 3>, weights_##NAME<T, 3>, sums_##NAME}, \
                                              {inputs_##NAME<T, 5>, weights_##NAME<T, 5>, sums_##NAME}};

NIBBLENET_FILTER(portable, )
#if defined(__x86_64__)
NIBBLENET_FILTER(avx2, __attribute__((target("avx2"))))
NIBBLENET_FILTER(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512"))))
#endif

}  // namespace

const FilterKernels& filter_kernels(InstructionSet set, int64_t group, int64_t columns) {
  const int at = columns == 3 ? 0 : 1;
#if defined(__x86_64__)
  if (set >= InstructionSet::avx512) return group == 4 ? filter_avx512<uint8_t>[at] : filter_avx512<int16_t>[at];
  if (set >= InstructionSet::avx2) return filter_avx2<int16_t>[at];
#endif
  (void)set, (void)group;
  return filter_portable<int16_t>[at];
}

}  // namespace nibblenet
