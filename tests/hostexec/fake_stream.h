#pragma once

#include <functional>

/// What the stand-ins for NVIDIA's libraries find behind a stream: those of cuDNN and cuBLASLt lie
/// in a library of their own, and reach the runtime's through this.
struct CUstream_st {
  bool (*capturing)();
  void (*perform)(std::function<void()> action);  ///< now, or whenever the graph that is being captured is launched
};
