#include "engine/quant/allocation.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

/// Keeps the Pareto front: sorted by bytes, an entry stays if its loss is below all before it.
void keep_front(std::vector<Allocation>& allocations) {
  std::ranges::sort(allocations, {}, [](const Allocation& a) { return std::tie(a.bytes, a.loss, a.choices); });
  size_t kept = 0;
  for (size_t i = 0; i < allocations.size(); ++i) {
    if (kept > 0 && !(allocations[i].loss < allocations[kept - 1].loss)) continue;
    if (kept != i) allocations[kept] = std::move(allocations[i]);
    ++kept;
  }
  allocations.resize(kept);
}

}  // namespace

std::vector<Allocation> allocation_front(std::span<const std::vector<AllocationChoice>> layers) {
  std::vector<Allocation> front(1);
  for (const std::vector<AllocationChoice>& layer : layers) {
    if (layer.empty()) throw UsageError("a layer without choices cannot be allocated");
    std::vector<Allocation> extended;
    extended.reserve(front.size() * layer.size());
    for (const Allocation& before : front) {
      for (size_t choice = 0; choice < layer.size(); ++choice) {
        if (!std::isfinite(layer[choice].loss)) throw UsageError("the loss of a choice is not a finite number");
        Allocation& next = extended.emplace_back(before);
        next.choices.push_back(choice);
        next.bytes += layer[choice].bytes;
        next.loss += layer[choice].loss;
      }
    }
    keep_front(extended);
    front = std::move(extended);
  }
  return front;
}

std::optional<Allocation> best_within(std::span<const Allocation> front, int64_t bytes) {
  const auto above = std::ranges::upper_bound(front, bytes, {}, &Allocation::bytes);
  if (above == front.begin()) return std::nullopt;
  return *(above - 1);
}

std::optional<Allocation> smallest_within(std::span<const Allocation> front, double most,
                                          const std::function<double(const Allocation&)>& measured) {
  size_t low = 0, high = front.size() - 1;
  if (!(measured(front[high]) <= most)) return std::nullopt;  // NaN is within no limit
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (measured(front[middle]) <= most)
      high = middle;
    else
      low = middle + 1;
  }
  return front[high];
}

}  // namespace nibblenet
