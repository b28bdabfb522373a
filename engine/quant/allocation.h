#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nibblenet {

/// One way to store one weight tensor: what it takes and what it is measured to cost.
struct AllocationChoice {
  int64_t bytes = 0;
  double loss = 0;  ///< added to the network's loss, on the assumption that the layers' costs add up
};

/// One choice for every layer.
struct Allocation {
  std::vector<size_t> choices;  ///< by layer, an index into its choices
  int64_t bytes = 0;
  double loss = 0;
};

/// Every allocation that no other beats in both bytes and loss: ascending bytes, falling loss. Exact: the fronts of the
/// first layers are extended layer by layer, and what another entry beats is dropped (Nemhauser and Ullmann 1969,
/// "Discrete dynamic programming and capital allocation"). Of equal allocations the one with the earlier choices wins.
/// Throws UsageError for a layer without choices and for losses that are not finite.
std::vector<Allocation> allocation_front(std::span<const std::vector<AllocationChoice>> layers);

/// The allocation of the least loss within `bytes`; nothing when even the smallest one is larger.
std::optional<Allocation> best_within(std::span<const Allocation> front, int64_t bytes);

}  // namespace nibblenet
