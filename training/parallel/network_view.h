#pragma once

#include "kernels/cpu/backend_cpu.h"
#include "layers/network/network.h"

namespace nibblenet {

/// A network on another backend that computes with the weights of `network`, which outlives it.
/// Both are on the CPU. Biases are copies: call refresh() after every change of a parameter. Throws
/// Error for a network on another device.
Network view_of(Network& network, CpuBackend& backend);
/// Takes over changed parameters.
void refresh(Network& view, const Network& network);

}  // namespace nibblenet
