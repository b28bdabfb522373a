#include "engine/quant/allocation.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <tuple>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

/// The least losses so far by bytes of the second kind: both ascending along the map, losses fall.
class Staircase {
 public:
  /// Adds an entry unless another has no more bytes and no larger loss. Returns whether it did.
  bool add(int64_t other, double loss) {
    auto above = steps_.upper_bound(other);
    if (above != steps_.begin() && std::prev(above)->second <= loss) return false;
    auto at = steps_.lower_bound(other);
    while (at != steps_.end() && at->second >= loss) at = steps_.erase(at);
    steps_.emplace(other, loss);
    return true;
  }

 private:
  std::map<int64_t, double> steps_;
};

/// Keeps the Pareto front: sorted by bytes, an entry stays if none before it has no larger loss and
/// no more bytes of the second kind.
void keep_front(std::vector<Allocation>& allocations) {
  std::ranges::sort(allocations, {}, [](const Allocation& a) { return std::tie(a.bytes, a.loss, a.other, a.choices); });
  Staircase best;
  size_t kept = 0;
  for (size_t i = 0; i < allocations.size(); ++i) {
    if (!best.add(allocations[i].other, allocations[i].loss)) continue;
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
        next.other += layer[choice].other;
        next.loss += layer[choice].loss;
      }
    }
    keep_front(extended);
    front = std::move(extended);
  }
  return front;
}

std::optional<Allocation> best_within(std::span<const Allocation> front, int64_t bytes, int64_t other) {
  const Allocation* best = nullptr;
  for (const Allocation& allocation : front)
    if (allocation.bytes <= bytes && allocation.other <= other && (best == nullptr || allocation.loss < best->loss))
      best = &allocation;
  return best == nullptr ? std::nullopt : std::optional(*best);
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
