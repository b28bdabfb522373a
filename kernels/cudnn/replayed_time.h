#pragma once

#include <functional>
#include <optional>

#include "kernels/cuda/device/device.h"

namespace nibblenet {

/// Milliseconds of one `run`, as a graph of several in a row replays it: how the baseline chooses among algorithms.
/// `run` queues something on the stream, first outside of a graph, so that it can allocate what it needs, and returns
/// whether it could. Nothing where it could not, or where it cannot be captured.
std::optional<float> replayed_time(Stream& stream, const std::function<bool()>& run);

}  // namespace nibblenet
