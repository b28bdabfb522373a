#pragma once

#include <cstdint>
#include <functional>

#include "engine/core/error.h"

namespace nibblenet {

/// Progress callback: items done, and their total. Return true to stop.
using OnProgress = std::function<bool(int64_t done, int64_t total)>;

/// The user asked to stop. An operation that saves its work has saved it.
class Interrupted : public Error {
 public:
  using Error::Error;
};

/// Calls `on_progress` unless it is empty. Throws Interrupted where it asks to stop.
inline void report_progress(const OnProgress& on_progress, int64_t done, int64_t total) {
  if (on_progress && on_progress(done, total)) throw Interrupted("stopped; nothing was written");
}

}  // namespace nibblenet
