// Viterbi runs from the last weight to the first: a window at a lower bit has its new bits at the
// bottom. The 2^k states that may stand behind a state then lie 4096 / 2^k apart, and the search
// for the best one is a vector operation.

#include "engine/quant/trellis.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibblenet {
namespace {

constexpr int64_t seam_bits = 48;  ///< on either side of the seam, of the search for where it starts

struct WindowValues {
  alignas(64) std::array<float, trellis_states> by_state[2];
  WindowValues() : by_state{} {
    for (uint32_t state = 0; state < trellis_states; ++state)
      for (const bool again : {false, true}) by_state[again][state] = static_cast<float>(trellis_value(state, again));
  }
};
const float* window_values(bool again) {
  static const WindowValues values;
  return values.by_state[again].data();
}

/// least[t] and choices[t]: the lowest cost of states t + j states / 2^shift, and its first j.
template <int shift>
void choose_behind(const float* cost, float* least, uint8_t* choices) {
  constexpr int count = trellis_states >> shift;
  for (int t = 0; t < count; ++t) {
    float best = cost[t];
    int32_t choice = 0;
    for (int j = 1; j < 1 << shift; ++j) {
      const float other = cost[t + j * count];
      choice = other < best ? j : choice;
      best = other < best ? other : best;
    }
    least[t] = best;
    choices[t] = static_cast<uint8_t>(choice);
  }
}

/// One step of Viterbi:
///   next[state] = least[state >> shift] + weight (target - values[state])^2
struct ViterbiStep {
  const float* cost;
  float* least;  ///< has room for eight more
  uint8_t* choices;
  const float* values;
  float target;
  float weight;
  float* next;
};

template <int shift>
void advance_portable(const ViterbiStep& s) {
  choose_behind<shift>(s.cost, s.least, s.choices);
  for (int state = 0; state < trellis_states; ++state) {
    const float difference = s.target - s.values[state];
    s.next[state] = s.least[state >> shift] + s.weight * (difference * difference);
  }
}
using Advance = void (*)(const ViterbiStep&);
using AdvanceByShift = std::array<Advance, 5>;
constexpr AdvanceByShift advance_portably = {advance_portable<0>, advance_portable<1>, advance_portable<2>,
                                             advance_portable<3>, advance_portable<4>};

#if defined(__x86_64__)
// The same operations, eight states at a time: the same bits.

template <int shift>
__attribute__((target("avx2"))) void choose_behind_avx2(const float* cost, float* least, uint8_t* choices) {
  constexpr int count = trellis_states >> shift;
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // what packing has mixed up
  for (int t = 0; t < count; t += 32) {
    __m256 best[4];
    for (int v = 0; v < 4; ++v) best[v] = _mm256_loadu_ps(cost + t + 8 * v);
    __m256i choice = _mm256_setzero_si256();
    for (int j = 1; j < 1 << shift; ++j) {
      __m256i better[4];
      for (int v = 0; v < 4; ++v) {
        const __m256 other = _mm256_loadu_ps(cost + t + j * count + 8 * v);
        better[v] = _mm256_castps_si256(_mm256_cmp_ps(other, best[v], _CMP_LT_OQ));
        best[v] = _mm256_min_ps(other, best[v]);
      }
      const __m256i bytes =
          _mm256_packs_epi16(_mm256_packs_epi32(better[0], better[1]), _mm256_packs_epi32(better[2], better[3]));
      choice = _mm256_blendv_epi8(choice, _mm256_set1_epi8(static_cast<char>(j)), bytes);
    }
    for (int v = 0; v < 4; ++v) _mm256_storeu_ps(least + t + 8 * v, best[v]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(choices + t), _mm256_permutevar8x32_epi32(choice, in_order));
  }
}

template <int shift>
__attribute__((target("avx2"))) void advance_avx2(const ViterbiStep& s) {
  choose_behind_avx2<shift>(s.cost, s.least, s.choices);
  const __m256i spread = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), shift);
  const __m256 target = _mm256_set1_ps(s.target), weight = _mm256_set1_ps(s.weight);
  for (int state = 0; state < trellis_states; state += 8) {
    const __m256 behind = _mm256_permutevar8x32_ps(_mm256_loadu_ps(s.least + (state >> shift)), spread);
    const __m256 difference = _mm256_sub_ps(target, _mm256_loadu_ps(s.values + state));
    const __m256 error = _mm256_mul_ps(weight, _mm256_mul_ps(difference, difference));
    _mm256_storeu_ps(s.next + state, _mm256_add_ps(behind, error));
  }
}
constexpr AdvanceByShift advance_by_avx2 = {advance_avx2<0>, advance_avx2<1>, advance_avx2<2>, advance_avx2<3>,
                                            advance_avx2<4>};
#endif

const AdvanceByShift& best_advance() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) return advance_by_avx2;
#endif
  return advance_portably;
}

}  // namespace

TrellisEncoder::TrellisEncoder(int quarters)
    : quarters_(quarters),
      target_(trellis_sequence),
      weight_(trellis_sequence),
      cost_(trellis_states),
      next_(trellis_states),
      least_(trellis_states + 8),
      choices_(static_cast<size_t>(trellis_sequence * trellis_states)) {}

/// Bits from the window of weight i to that of the next one, which is weight 0 at the end.
int TrellisEncoder::shift_behind(int64_t i, int64_t length) const {
  return static_cast<int>(trellis_bit(i % length + 1, quarters_) - trellis_bit(i % length, quarters_));
}

/// Puts weight i in front of what cost_ is the cost of.
void TrellisEncoder::advance(int64_t i, int shift, int64_t step) {
  const auto at = static_cast<size_t>(i);
  best_advance()[static_cast<size_t>(shift)]({.cost = cost_.data(),
                                              .least = least_.data(),
                                              .choices = choices_.data() + step * trellis_states,
                                              .values = window_values(trellis_again(i, quarters_)),
                                              .target = target_[at],
                                              .weight = weight_[at],
                                              .next = next_.data()});
  std::swap(cost_, next_);
}

/// The state behind `state`, which `step` put in front of it.
uint32_t TrellisEncoder::walk_back(uint32_t state, int shift, int64_t step) const {
  const uint32_t shorter = state >> shift;
  const uint32_t choice = choices_[static_cast<size_t>(step * trellis_states) + shorter];
  return shorter + (choice << (trellis_window - shift));
}

/// The state of weight 0 on the best path over the weights around it that is no ring.
uint32_t TrellisEncoder::state_at_seam(int64_t length) {
  const int64_t half = std::min(length / 2, seam_bits * 4 / quarters_);
  std::ranges::fill(cost_, 0.0F);
  for (int64_t step = 0; step < 2 * half; ++step) {
    const int64_t i = (half - 1 - step + length) % length;
    advance(i, shift_behind(i, length), step);
  }
  auto state = static_cast<uint32_t>(std::ranges::min_element(cost_) - cost_.begin());
  for (int64_t step = 2 * half - 1; step >= half; --step)
    state = walk_back(state, shift_behind((half - 1 - step + length) % length, length), step);
  return state;
}

double TrellisEncoder::encode(const float* targets, const float* steps, int64_t length, uint8_t* string,
                              int16_t* values) {
  const float largest = *std::max_element(steps, steps + length);
  for (int64_t i = 0; i < length; ++i) {
    const auto at = static_cast<size_t>(i);
    const float relative = largest > 0 ? steps[i] / largest : 0.0F;
    weight_[at] = relative * relative;
    target_[at] = steps[i] > 0 ? std::clamp(targets[i] / steps[i], -1e6F, 1e6F) : 0.0F;
  }

  const uint32_t seam = state_at_seam(length);
  std::ranges::fill(cost_, std::numeric_limits<float>::infinity());
  cost_[seam] = 0;
  for (int64_t step = 0; step < length; ++step)
    advance(length - 1 - step, shift_behind(length - 1 - step, length), step);

  std::memset(string, 0, static_cast<size_t>(length * quarters_ / 32));
  uint32_t state = seam;
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int shift = shift_behind(i, length);
    const int64_t first = trellis_bit(i, quarters_);
    for (int bit = 0; bit < shift; ++bit)
      string[(first + bit) / 8] |= static_cast<uint8_t>((state >> bit & 1U) << (first + bit) % 8);
    values[i] = static_cast<int16_t>(trellis_value(state, trellis_again(i, quarters_)));
    const double error =
        static_cast<double>(targets[i]) - static_cast<double>(values[i]) * static_cast<double>(steps[i]);
    if (steps[i] > 0) sum += error * error;
    state = walk_back(state, shift, length - 1 - i);
  }
  return sum;
}

}  // namespace nibblenet
