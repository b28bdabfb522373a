#pragma once

#include <cstdint>

#include "kernels/cuda/weights/string_block.h"

// How a lane takes the windows of its strings (weights/string_windows.cuh) in few instructions.

namespace nibblenet {

/// How the windows of a lane's column are taken: bit i stands for the window that begins with
/// weight i. A window at the begin or at the end of a word takes one instruction, another takes one
/// more to align it. So two windows share an aligned word where one ends it 20 bits behind the
/// other; or where both lie in a word that turned round begins with one and ends with the other.
struct WindowPlan {
  uint32_t ends = 0;           ///< a word that begins 20 bits before
  uint32_t begins_turned = 0;  ///< a word turned round
  uint32_t ends_turned = 0;    ///< the same words
};

/// From the begin of a window to that of the one that ends the same word.
inline constexpr int window_distance = 32 - trellis_window;

/// The plan of strings of `quarters` quarters of a bit a weight.
constexpr WindowPlan plan_windows(int quarters) {
  constexpr int count = StringBlocks::lane_channels;
  WindowPlan plan;
  int path[count] = {}, index[count] = {}, length[count] = {};  // windows that follow each other by 20 bits
  const auto bit_of = [&](int i) { return static_cast<int>(trellis_bit(i, quarters)); };
  const auto at_border = [&](int i) { return bit_of(i) % 32 == 0 || bit_of(i) % 32 == window_distance; };
  const auto window_at = [&](int bit) {  // the weight that begins it, or -1
    for (int i = 0; i < count; ++i)
      if (bit_of(i) == bit && !trellis_again(i, quarters)) return i;
    return -1;
  };
  for (int i = 0; i < count; ++i) {
    if (trellis_again(i, quarters) || at_border(i)) continue;
    const int before = bit_of(i) < window_distance ? -1 : window_at(bit_of(i) - window_distance);
    path[i] = before < 0 || at_border(before) ? i : path[before];
    index[i] = length[path[i]]++;
  }
  // Of an odd number, one has no partner: the last, or one that finds a partner in its own word.
  int alone[count] = {};  // by path
  for (int i = 0; i < count; ++i) alone[i] = length[i] % 2 == 1 ? length[i] - 1 : count;
  bool chosen[count] = {};
  for (int i = 0; i < count; ++i) {
    const int other = window_at(bit_of(i) + trellis_window);
    if (trellis_again(i, quarters) || at_border(i) || other < 0 || at_border(other)) continue;
    if (bit_of(i) % 32 + 2 * trellis_window > 32 || path[i] == path[other]) continue;
    const auto may_be_alone = [&](int w) { return length[path[w]] % 2 == 1 && index[w] % 2 == 0 && !chosen[path[w]]; };
    if (!may_be_alone(i) || !may_be_alone(other)) continue;
    alone[path[i]] = index[i];
    alone[path[other]] = index[other];
    chosen[path[i]] = chosen[path[other]] = true;
    plan.ends_turned |= 1U << i;
    plan.begins_turned |= 1U << other;
  }
  for (int i = 0; i < count; ++i) {
    if (trellis_again(i, quarters)) continue;
    if (bit_of(i) % 32 == window_distance) plan.ends |= 1U << i;
    if (at_border(i)) continue;
    const int of_rest = index[i] - (index[i] > alone[path[i]] ? 1 : 0);
    if (index[i] != alone[path[i]] && of_rest % 2 == 1) plan.ends |= 1U << i;
  }
  return plan;
}

}  // namespace nibblenet
