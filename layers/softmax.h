#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace nibblenet {

/// Softmax of one row of logits, in double.
inline std::vector<double> softmax(std::span<const float> logits) {
  const float largest = std::ranges::max(logits);
  std::vector<double> p;
  double sum = 0;
  for (const float logit : logits) sum += p.emplace_back(std::exp(static_cast<double>(logit - largest)));
  for (double& value : p) value /= sum;
  return p;
}

}  // namespace nibblenet
