#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/weights/string_block.h"

// How a lane takes the windows of its strings (weights/string_windows.cuh) in few instructions.

namespace nibblenet {

/// Where a window at the end of a word begins.
inline constexpr int window_distance = 32 - trellis_window;
/// Bits of a word at which a window takes one instruction: a mask leaves it in place, 2^bit times
/// the window, where the four bytes of its value have room for two bits more; or a shift takes it
/// off the word's end.
inline constexpr int window_places[] = {0, 1, 2, window_distance};

/// How the windows of a lane's column are taken: bit i stands for the window that begins with
/// weight i. A window lies at one of window_places in a word of the column, or else in a shifted
/// word, which takes one instruction more. Some windows share one: a word that begins at any bit
/// has up to four windows at these places, and a word turned round those of its own bits.
struct WindowPlan {
  uint32_t at_1 = 0, at_2 = 0, at_end = 0;  ///< by place; else at 0
  uint32_t turned = 0;                      ///< in words turned round
  int shifted_words = 0;

  /// Where window i begins in its word.
  constexpr int place(int i) const {
    if ((at_end >> i & 1U) != 0) return window_distance;
    return static_cast<int>((at_1 >> i & 1U) + 2 * (at_2 >> i & 1U));
  }
  /// The exponent of the power of two that the value's parts are multiplied by.
  constexpr int scale(int i) const { return (at_end >> i & 1U) != 0 ? 0 : place(i); }
};

/// Makes a plan. A weight that takes a window again has the one of the weight before.
class WindowPlanner {
 public:
  /// Of strings of `quarters` quarters of a bit a weight.
  constexpr explicit WindowPlanner(int quarters) : quarters_(quarters) {
    for (int i = 0; i < count; ++i)
      if (!trellis_again(i, quarters)) left_ |= 1U << i;
    for (int word = 0; word * 32 <= bit_of(count - 1); ++word) take({32 * word, false, 0});
    while (left_ != 0) {
      take(best_word(rarest()));
      ++plan_.shifted_words;
    }
    for (int i = 1; i < count; ++i)
      if (trellis_again(i, quarters))
        for (uint32_t* of : {&plan_.at_1, &plan_.at_2, &plan_.at_end, &plan_.turned}) *of |= (*of >> (i - 1) & 1U) << i;
  }
  /// The plan.
  constexpr WindowPlan plan() const { return plan_; }

 private:
  static constexpr int count = StringBlocks::lane_channels;
  static constexpr int places = 4;
  /// A word that begins at bit `begin` of a column, or at that bit of word `of`, turned round.
  struct Word {
    int begin;
    bool turned;
    int of;
  };

  constexpr int bit_of(int i) const { return static_cast<int>(trellis_bit(i, quarters_)); }
  /// The weight whose window a word has at `place`; -1: none.
  constexpr int window_in(const Word& word, int place) const {
    int bit = word.begin + place;
    if (word.begin < 0 || (word.turned && bit % 32 + trellis_window > 32)) return -1;
    if (word.turned) bit = 32 * word.of + bit % 32;
    for (int i = 0; i < count; ++i)
      if (bit_of(i) == bit && !trellis_again(i, quarters_)) return i;
    return -1;
  }
  /// The windows of a word that are still to be taken.
  constexpr uint32_t windows_of(const Word& word) const {
    uint32_t result = 0;
    for (const int place : window_places)
      if (const int i = window_in(word, place); i >= 0) result |= left_ & 1U << i;
    return result;
  }
  /// The words that may have window i: four shifted ones, and four turned round.
  constexpr Word word_with(int i, int way) const {
    const int begin = bit_of(i) - window_places[way % places];
    return way < places ? Word{begin, false, 0} : Word{(begin + 32) % 32, true, bit_of(i) / 32};
  }
  /// The windows of word_with(i, way), if it does have window i.
  constexpr uint32_t windows_with(int i, int way) const {
    const uint32_t windows = windows_of(word_with(i, way));
    return (windows >> i & 1U) != 0 ? windows : 0;
  }
  /// The window that can share words with others in the fewest ways.
  constexpr int rarest() const {
    int result = -1, fewest = 2 * places + 1;
    for (int i = 0; i < count; ++i) {
      if ((left_ >> i & 1U) == 0) continue;
      uint32_t seen[2 * places] = {};
      int ways = 0;
      for (int way = 0; way < 2 * places; ++way) {
        const uint32_t windows = windows_with(i, way);
        bool is_new = std::popcount(windows) > 1;
        for (int w = 0; w < ways; ++w) is_new = is_new && seen[w] != windows;
        if (is_new) seen[ways++] = windows;
      }
      if (ways >= fewest) continue;
      fewest = ways;
      result = i;
    }
    return result;
  }
  /// The word with window i and most others; of several, the one that begins first.
  constexpr Word best_word(int i) const {
    int best = 0;
    for (int way = 1; way < 2 * places; ++way) {
      const int more = std::popcount(windows_with(i, way)) - std::popcount(windows_with(i, best));
      if (more > 0 || (more == 0 && word_with(i, way).begin <= word_with(i, best).begin)) best = way;
    }
    return word_with(i, best);
  }
  /// Notes the place of a word's windows.
  constexpr void take(const Word& word) {
    for (const int place : window_places) {
      const int i = window_in(word, place);
      if (i < 0 || (left_ >> i & 1U) == 0) continue;
      left_ &= ~(1U << i);
      if (place == 1) plan_.at_1 |= 1U << i;
      if (place == 2) plan_.at_2 |= 1U << i;
      if (place == window_distance) plan_.at_end |= 1U << i;
      if (word.turned) plan_.turned |= 1U << i;
    }
  }

  int quarters_;
  uint32_t left_ = 0;
  WindowPlan plan_;
};

/// The plan of strings of `quarters` quarters of a bit a weight.
constexpr WindowPlan plan_windows(int quarters) { return WindowPlanner(quarters).plan(); }

}  // namespace nibblenet
