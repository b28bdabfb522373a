#pragma once

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Folds batch norms into the convolutions in front of them, if a state dict is of a network's
/// variant with batch norms (LayerRow::normalised). With PyTorch's ε = 1e-5 and in double:
///   w' = w γ / sqrt(σ² + ε)    b' = (b − μ) γ / sqrt(σ² + ε) + β
/// The layers get the names of the network without batch norms. Returns the number of batch norms.
/// Throws FormatError when a part of one is missing or does not fit, or a variance is negative.
int fold_batch_norms(StateDict& parameters);

}  // namespace nibblenet
