#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/decode_cpu.h"

// Rounds weights while they train, in runs that stay in the first-level cache: divide by the step,
// compare with the codebook's values, multiply back. The compiler vectorises each of these loops,
// for AVX-512, AVX2 and the machine's baseline.

#define NIBBLENET_INLINE inline __attribute__((always_inline))

namespace nibblenet {
namespace {

/// A codebook as sorted thresholds: value i applies from `from[i - 1]` on. Decisions are those of
/// encode(), with one comparison each. Where a tie goes down, the threshold is the next float.
struct Ladder {
  int count = 0;
  alignas(64) std::array<float, 256> from{};    ///< NaN beyond the last value: no comparison succeeds
  alignas(64) std::array<float, 256> values{};  ///< ascending; entries beyond the last are unused
  std::array<uint8_t, 256> codes{};
  float value_of_zero = 0;

  explicit Ladder(const Codebook& codebook) : count(codebook.count), codes(codebook.ordered_codes) {
    from.fill(std::numeric_limits<float>::quiet_NaN());
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) values[i] = codebook.values[codes[i]];
    for (size_t i = 0; i + 1 < static_cast<size_t>(count); ++i)
      from[i] = codebook.tie_up[i] ? codebook.thresholds[i]
                                   : std::nextafter(codebook.thresholds[i], std::numeric_limits<float>::infinity());
    value_of_zero = codebook.values[codebook.zero_code];
  }
  float lowest() const { return values[0]; }
  float highest() const { return values[static_cast<size_t>(count) - 1]; }
};

constexpr int64_t stretch = 512;

/// Results for a run of weights: x = master / step, the nearest value, and its rank.
struct Nearest {
  alignas(64) float x[stretch];
  alignas(64) float value[stretch];
  alignas(64) int32_t rank[stretch];
};

/// Compares with every threshold. This is fastest for few of them, and needs no look-up table.
template <size_t... rungs>
NIBBLENET_INLINE void climb(Nearest& nearest, int64_t count, const Ladder& ladder, std::index_sequence<rungs...>) {
  const float lowest = ladder.values[0];
  const float from[] = {ladder.from[rungs]...}, values[] = {ladder.values[rungs + 1]...};  // in registers
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float x = nearest.x[i];
    float value = lowest;
    int32_t rank = 0;
    ((value = x >= from[rungs] ? values[rungs] : value, rank += x >= from[rungs] ? 1 : 0), ...);
    nearest.value[i] = value;
    nearest.rank[i] = rank;
  }
}

NIBBLENET_INLINE void search(Nearest& nearest, int64_t count, const Ladder& ladder) {
  const float* from = ladder.from.data();
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    int32_t rank = 0;
#pragma GCC unroll 8
    for (int32_t step = 128; step != 0; step >>= 1) rank += nearest.x[i] >= from[rank + step - 1] ? step : 0;
    nearest.rank[i] = rank;
    nearest.value[i] = ladder.values[static_cast<size_t>(rank)];
  }
}

NIBBLENET_INLINE void find_nearest(Nearest& nearest, const float* master, int64_t count, float step,
                                   const Ladder& ladder) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) nearest.x[i] = master[i] / step;
  if (ladder.count <= 4) return climb(nearest, count, ladder, std::make_index_sequence<3>());
  if (ladder.count <= 8) return climb(nearest, count, ladder, std::make_index_sequence<7>());
  if (ladder.count <= 16) return climb(nearest, count, ladder, std::make_index_sequence<15>());
  search(nearest, count, ladder);
}

/// A run of weights that share one step, which is not 0.
struct Run {
  const float* master;
  int64_t count;
  float step;
};

NIBBLENET_INLINE void round_run(float* out, const Run& run, const Ladder& ladder) {
  Nearest nearest;
  for (int64_t begin = 0; begin < run.count; begin += stretch) {
    const int64_t count = std::min(stretch, run.count - begin);
    find_nearest(nearest, run.master + begin, count, run.step, ladder);
    float* to = out + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = reconstruct(nearest.value[i], 0.0F, run.step);
  }
}

/// Sums over the weights of each value, by rank. There are four of each, so that consecutive
/// additions are independent.
using ValueSums = std::array<std::array<float, 256>, 4>;

NIBBLENET_INLINE void add_by_value(ValueSums& sums, const Nearest& nearest, const float* dweights, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t j = 0; j < 4; ++j)
      sums[static_cast<size_t>(j)][static_cast<size_t>(nearest.rank[i + j])] += dweights[i + j];
  for (; i < count; ++i) sums[0][static_cast<size_t>(nearest.rank[i])] += dweights[i];
}

/// Returns the run's share of dstep. `sums` may be null.
NIBBLENET_INLINE float run_backward(float* dweights, ValueSums* sums, const Run& run, const Ladder& ladder) {
  Nearest nearest;
  const float lowest = ladder.lowest(), highest = ladder.highest(), step = run.step;
  float dstep = 0;
  for (int64_t begin = 0; begin < run.count; begin += stretch) {
    const int64_t count = std::min(stretch, run.count - begin);
    find_nearest(nearest, run.master + begin, count, step, ladder);
    float* d = dweights + begin;
    if (sums != nullptr) add_by_value(*sums, nearest, d, count);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      const float x = nearest.x[i], towards_zero = d[i] * step;
      const bool above = x > highest, below = x < lowest;
      sum += d[i] * (nearest.value[i] - ((above | below) ? 0.0F : x));
      const bool leads_away = (above & (towards_zero <= 0.0F)) | (below & (towards_zero >= 0.0F));
      d[i] = leads_away ? 0.0F : d[i];
    }
    dstep += sum;
  }
  return dstep;
}

void round_codes(float* out, const Run& run, const float* values) {
  for (int64_t i = 0; i < run.count; ++i)
    out[i] = reconstruct(values[static_cast<size_t>(run.master[i])], 0.0F, run.step);
}

/// run_backward for fixed codes; sums are by code.
float codes_backward(const float* dweights, ValueSums* sums, const Run& run, const float* values) {
  ValueSums unused;
  ValueSums& by_code = sums != nullptr ? *sums : unused;
  double dstep = 0;
  for (int64_t i = 0; i < run.count; ++i) {
    const auto code = static_cast<size_t>(run.master[i]);
    by_code[static_cast<size_t>(i % 4)][code] += dweights[i];
    dstep += static_cast<double>(dweights[i] * values[code]);
  }
  return static_cast<float>(dstep);
}

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wignored-attributes"  // it knows no prefer-vector-width
#endif
#define NIBBLENET_ROUND_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")))
#define NIBBLENET_ROUND_AVX2 __attribute__((target("avx2")))
NIBBLENET_ROUND_AVX512 void round_run_avx512(float* out, const Run& run, const Ladder& ladder) {
  round_run(out, run, ladder);
}
NIBBLENET_ROUND_AVX512 float backward_avx512(float* dweights, ValueSums* sums, const Run& run, const Ladder& ladder) {
  return run_backward(dweights, sums, run, ladder);
}
NIBBLENET_ROUND_AVX2 void round_run_avx2(float* out, const Run& run, const Ladder& ladder) {
  round_run(out, run, ladder);
}
NIBBLENET_ROUND_AVX2 float backward_avx2(float* dweights, ValueSums* sums, const Run& run, const Ladder& ladder) {
  return run_backward(dweights, sums, run, ladder);
}
#endif
void round_run_portable(float* out, const Run& run, const Ladder& ladder) { round_run(out, run, ladder); }
float backward_portable(float* dweights, ValueSums* sums, const Run& run, const Ladder& ladder) {
  return run_backward(dweights, sums, run, ladder);
}

/// What rounds a run, and what its backward pass does.
struct RunFunctions {
  decltype(&round_run_portable) round;
  decltype(&backward_portable) backward;
};

RunFunctions best_functions() {
#if defined(__x86_64__)
  if (best_decode_path() == DecodePath::avx512) return {round_run_avx512, backward_avx512};
  if (best_decode_path() == DecodePath::avx2) return {round_run_avx2, backward_avx2};
#endif
  return {round_run_portable, backward_portable};
}

/// Output channels cut into at most 64 chunks. No two chunks share a group, unless there is only
/// one. Each chunk's sums and their order do not depend on the number of threads.
struct Chunks {
  int64_t channels;
  int64_t length;
  int64_t count;

  Chunks(int64_t all, const GroupMap& map) : channels(all) {
    constexpr int64_t most = 64;
    const int64_t band = map.groups == 1 ? 1 : std::min(map.channels_in_common(), all);
    const int64_t bands = (all + band - 1) / band;
    length = band * ((bands + most - 1) / most);
    count = (all + length - 1) / length;
  }
  int64_t begin(int64_t chunk) const { return chunk * length; }
  int64_t end(int64_t chunk) const { return std::min(channels, (chunk + 1) * length); }
};

/// Calls use(run, group, index of its first weight) for every run of one chunk.
template <class Use>
void for_each_run(const Chunks& chunks, int64_t chunk, TensorView<const float> master, const RoundingRule& rule,
                  Use use) {
  const GroupMap& map = rule.groups;
  for (int64_t channel = chunks.begin(chunk); channel < chunks.end(chunk); ++channel)
    for (int64_t k = 0; k < map.channel_elements;) {
      const int64_t group = map.group(channel, k), count = map.run(k), index = channel * map.channel_elements + k;
      use(Run{master.data() + index, count, rule.steps[group]}, group, index);
      k += count;
    }
}

}  // namespace

void CpuBackend::round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule) {
  const Ladder ladder(rule.codebook);
  const Chunks chunks(master.size(0), rule.groups);
  const auto round = best_functions().round;
#pragma omp parallel for schedule(dynamic)
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk)
    for_each_run(chunks, chunk, master, rule, [&](const Run& run, int64_t, int64_t index) {
      float* out = values.data() + index;
      if (rule.by_code)
        round_codes(out, run, rule.codebook.values.data());
      else if (run.step != 0)
        round(out, run, ladder);
      else
        std::fill_n(out, run.count, reconstruct(ladder.value_of_zero, 0.0F, run.step));
    });
}

void CpuBackend::round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps,
                                        TensorView<float> dcodebook, TensorView<const float> master,
                                        const RoundingRule& rule) {
  const Ladder ladder(rule.codebook);
  const Chunks chunks(master.size(0), rule.groups);
  const auto backward = best_functions().backward;
  const bool one_group = rule.groups.groups == 1, learns_values = dcodebook.data() != nullptr;
  // Entries of the sums over values: by code, or by rank among the thresholds.
  const size_t entries = rule.by_code ? size_t{1} << rule.codebook.bits : static_cast<size_t>(ladder.count);
  std::vector<float> step_sums(static_cast<size_t>(chunks.count));  // for a single group
  std::vector<std::array<double, 256>> value_sums(learns_values ? step_sums.size() : 0);
  std::ranges::fill(dsteps, 0.0F);
#pragma omp parallel for schedule(dynamic)
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    ValueSums sums{};
    for_each_run(chunks, chunk, master, rule, [&](const Run& run, int64_t group, int64_t index) {
      float* d = dweights.data() + index;
      if (run.step == 0) {
        std::fill_n(d, run.count, 0.0F);
        return;
      }
      float& dstep = one_group ? step_sums[static_cast<size_t>(chunk)] : dsteps[group];
      ValueSums* of_values = learns_values ? &sums : nullptr;
      dstep += rule.by_code ? codes_backward(d, of_values, run, rule.codebook.values.data())
                            : backward(d, of_values, run, ladder);
      if (!learns_values) return;
      for (size_t i = 0; i < entries; ++i) {
        const float sum = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
        value_sums[static_cast<size_t>(chunk)][i] += static_cast<double>(sum) * static_cast<double>(run.step);
        for (auto& part : sums) part[i] = 0;
      }
    });
  }
  if (one_group) {
    double total = 0;
    for (const float sum : step_sums) total += static_cast<double>(sum);
    dsteps[0] = static_cast<float>(total);
  }
  if (!learns_values) return;
  std::ranges::fill(dcodebook, 0.0F);
  for (size_t i = 0; i < entries; ++i) {
    double total = 0;
    for (const auto& sums : value_sums) total += sums[i];
    dcodebook[rule.by_code ? static_cast<int64_t>(i) : ladder.codes[i]] = static_cast<float>(total);
  }
}

}  // namespace nibblenet
