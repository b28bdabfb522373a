#pragma once

#include <functional>
#include <optional>

#include "kernels/cuda/device/device.h"

namespace nibblenet {

/// Milliseconds of one `run`, measured by replaying a graph of several: the baseline chooses
/// algorithms by it. `run` queues work on the stream and returns whether that succeeded. The first
/// call is outside a graph, so that it can allocate memory. Returns nothing if `run` fails or a
/// graph cannot capture it.
std::optional<float> replayed_time(Stream& stream, const std::function<bool()>& run);

}  // namespace nibblenet
