#include "engine/quant/rate_cost.h"

#include <numeric>

namespace nibblenet {

std::vector<float> relative_fisher(std::span<const float> fisher, int64_t outputs) {
  constexpr double least = 1e-3;
  const double mean = std::accumulate(fisher.begin(), fisher.end(), 0.0) / static_cast<double>(outputs);
  std::vector<float> relative(static_cast<size_t>(outputs), 1.0F);
  if (!(mean > 0)) return relative;
  for (size_t output = 0; output < fisher.size(); ++output)
    relative[output] = static_cast<float>((static_cast<double>(fisher[output]) / mean + least) / (1 + least));
  return relative;
}

}  // namespace nibblenet
