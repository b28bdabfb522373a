#pragma once

#include "kernels/training.h"

namespace nibblenet {

/// y = x / (1 - probability) for the elements that stay, 0 for the others (inverted dropout). The mask is a function of
/// `key` and the element's index: the backward pass draws it again instead of storing it. y may be x.
void dropout_forward(Training& backend, Activations y, ConstActivations x, float probability, DropoutKey key);
void dropout_backward(Training& backend, Activations dx, ConstActivations dy, float probability, DropoutKey key,
                      const GradientStore& store = {});

}  // namespace nibblenet
