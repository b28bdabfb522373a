#pragma once

#include <cstddef>
#include <functional>

namespace nibblenet {

/// Calls work(i) for 0 <= i < count on up to `threads` threads, the caller's included. Each thread
/// takes `stride` indices at a time. Use it for work of uneven length, such as decoding pictures.
/// Rethrows the exception of the smallest i that threw. That does not depend on timing: indices are
/// handed out in order, so every smaller one has run.
void parallel_for(size_t count, unsigned threads, size_t stride, const std::function<void(size_t)>& work);

}  // namespace nibblenet
