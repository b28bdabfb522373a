#pragma once

#include <functional>

/// The stream of the stand-ins. Those for cuDNN and cuBLASLt are a library of their own and reach
/// the runtime's stream through this interface.
struct CUstream_st {
  bool (*capturing)();
  void (*perform)(std::function<void()> action);  ///< now, or whenever the graph that is being captured is launched
};
