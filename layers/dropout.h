#pragma once

#include "kernels/training.h"

namespace nibblenet {

/// Inverted dropout: y = x / (1 - probability) for elements that stay, 0 for the others. The mask
/// is a function of `key` and the element's index. The backward pass draws it again; it is not
/// stored. y may be x.
void dropout_forward(Training& backend, Activations y, ConstActivations x, float probability, DropoutKey key);
void dropout_backward(Training& backend, Activations dx, ConstActivations dy, float probability, DropoutKey key,
                      const GradientStore& store = {});

}  // namespace nibblenet
