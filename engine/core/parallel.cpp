#include "engine/core/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace nibblenet {

void parallel_for(size_t count, unsigned threads, size_t stride, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  size_t failed_index = count;
  std::exception_ptr error;

  const auto run = [&] {
    while (!failed) {
      const size_t begin = next.fetch_add(stride);
      if (begin >= count) return;
      for (size_t i = begin; i < std::min(count, begin + stride); ++i) {
        try {
          work(i);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (i < failed_index) {
            failed_index = i;
            error = std::current_exception();
          }
          failed = true;
          return;
        }
      }
    }
  };
  {
    const size_t wanted = std::min<size_t>(threads, (count + stride - 1) / stride);
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < wanted; ++i) helpers.emplace_back(run);
    run();
  }
  if (error != nullptr) std::rethrow_exception(error);
}

}  // namespace nibblenet
