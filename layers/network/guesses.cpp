#include "layers/network/guesses.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/core/error.h"

namespace nibblenet {

std::vector<Guess> best_guesses(std::span<const float> logits, int64_t top) {
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); }))
    throw Error("the network's output is not finite");
  const float largest = *std::ranges::max_element(logits);
  float sum = 0;
  std::vector<Guess> guesses;
  for (const float logit : logits) {
    guesses.push_back({static_cast<int64_t>(guesses.size()), std::exp(logit - largest)});
    sum += guesses.back().probability;
  }
  // By logits: different ones may have the same probability.
  std::ranges::stable_sort(guesses, std::greater(),
                           [&](const Guess& g) { return logits[static_cast<size_t>(g.label)]; });
  guesses.resize(std::min(guesses.size(), static_cast<size_t>(top)));
  for (Guess& guess : guesses) guess.probability /= sum;
  return guesses;
}

}  // namespace nibblenet
