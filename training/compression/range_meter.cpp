#include "training/compression/range_meter.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace nibblenet {
namespace {

constexpr int64_t one_in = 100'000;  ///< one input of so many may saturate

}  // namespace

RangeMeter::RangeMeter(int64_t inputs) : kept_(static_cast<size_t>(std::max<int64_t>(inputs, 0) / one_in + 1)) {}

void RangeMeter::add(std::span<const float> inputs) {
  for (const float input : inputs) {
    const float magnitude = std::fabs(input);
    if (!(magnitude > least_)) continue;
    top_.push_back(magnitude);
    if (top_.size() == 2 * kept_) keep_largest();
  }
}

void RangeMeter::keep_largest() {
  const auto last = top_.begin() + static_cast<std::ptrdiff_t>(kept_) - 1;
  std::ranges::nth_element(top_, last, std::greater());
  least_ = *last;
  top_.resize(kept_);
}

float RangeMeter::largest() const {
  if (top_.empty()) return 0;
  std::vector<float> sorted = top_;
  std::ranges::sort(sorted, std::greater());
  return sorted[sorted.size() < kept_ ? 0 : kept_ - 1];
}

}  // namespace nibblenet
