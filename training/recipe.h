#pragma once

#include <string>

namespace nibblenet {

/// Parts of a training recipe that a run may leave out; the default is without any.
struct RecipeOptions {
  double ema = 0;  ///< decay of the weights' moving average, which is then the model; 0: there is none
};

}  // namespace nibblenet
