#pragma once

#include <cstddef>
#include <functional>

namespace nibblenet {

/// Calls work(i) for 0 <= i < count on up to `threads` threads, the caller's among them; each takes `stride` indices at
/// a time. For work of uneven length, such as decoding pictures. Rethrows the exception of the smallest i that threw,
/// which does not depend on timing: indices are handed out in order, so that every smaller one has been tried.
void parallel_for(size_t count, unsigned threads, size_t stride, const std::function<void(size_t)>& work);

}  // namespace nibblenet
