#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace nibblenet {

/// One way to store one weight tensor: its bytes and its measured loss.
struct AllocationChoice {
  int64_t bytes = 0;
  double loss = 0;    ///< added to the network's loss; the losses of layers are taken to add up
  int64_t other = 0;  ///< bytes of a second kind, like those in memory; 0: not counted
};

/// One choice for every layer.
struct Allocation {
  std::vector<size_t> choices;  ///< by layer, an index into its choices
  int64_t bytes = 0;
  double loss = 0;
  int64_t other = 0;  ///< bytes of the second kind
};

/// The Pareto front: every allocation that no other beats in loss and bytes of both kinds, by
/// ascending bytes. Where no choice has bytes of a second kind, losses fall along it. The front is
/// exact. It is extended layer by layer, and beaten entries are dropped (Nemhauser and Ullmann
/// 1969, "Discrete dynamic programming and capital allocation"). Of equal allocations the one with
/// the earlier choices wins. Throws UsageError for a layer without choices and for losses that are
/// not finite.
std::vector<Allocation> allocation_front(std::span<const std::vector<AllocationChoice>> layers);

/// The allocation of least loss within `bytes`, and within `other` bytes of the second kind.
/// Returns nothing if there is none.
std::optional<Allocation> best_within(std::span<const Allocation> front, int64_t bytes, int64_t other = INT64_MAX);

/// The smallest allocation whose `measured` loss is at most `most`, by bisection: the larger one is
/// taken to lose less. Requires: no bytes of a second kind. Returns nothing if even the largest
/// loses more.
std::optional<Allocation> smallest_within(std::span<const Allocation> front, double most,
                                          const std::function<double(const Allocation&)>& measured);

}  // namespace nibblenet
