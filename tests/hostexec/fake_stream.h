#pragma once

#include <deque>
#include <functional>

/// A stream of the stand-ins. Those for cuDNN, cuBLASLt and NCCL are libraries of their own and
/// reach the runtime's streams through this interface.
struct CUstream_st {
  bool (*capturing)();
  void (*perform)(std::function<void()> action);  ///< now, or whenever the graph that is being captured is launched
  /// Work that takes time, and all that was queued behind it: each says whether it is done, and is
  /// asked again when somebody waits for the stream.
  std::deque<std::function<bool()>> waiting;
};
