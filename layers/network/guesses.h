#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// A class that an image may show.
struct Guess {
  int64_t label = 0;
  float probability = 0;  ///< softmax of the logits
};

/// The `top` likeliest classes of one row of logits, best first, the first one of equals in front;
/// all of them where `top` is larger. Throws Error when logits are NaN or infinite. Requires: at
/// least one logit, top >= 0.
std::vector<Guess> best_guesses(std::span<const float> logits, int64_t top);

}  // namespace nibblenet
