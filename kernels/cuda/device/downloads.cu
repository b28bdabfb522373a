#include <algorithm>
#include <cstring>

#include "kernels/cuda/device/check.h"
#include "kernels/cuda/device/downloads.h"

namespace nibblenet {

Downloads::~Downloads() { cudaFreeHost(memory_); }  // which waits for the device

std::byte* Downloads::reserve(size_t bytes) {
  if (used_ + bytes > size_) {
    finish();
    if (bytes > size_) {
      cudaFreeHost(memory_);
      memory_ = nullptr;
      size_ = 0;
      const size_t size = std::max(bytes, size_t{64} << 10);
      void* memory = nullptr;
      check(cudaMallocHost(&memory, size), "cudaMallocHost");
      memory_ = static_cast<std::byte*>(memory);
      size_ = size;
    }
  }
  return memory_ + used_;
}

void Downloads::copy(void* host, const void* source, size_t bytes, Stream& stream) {
  std::byte* to = reserve(bytes);
  check(cudaMemcpyAsync(to, source, bytes, cudaMemcpyDeviceToHost, stream.get()), "copying from the GPU");
  arrived_.record(stream);
  pending_.push_back({host, used_, bytes});
  used_ += bytes;
}

void Downloads::finish() {
  if (pending_.empty()) return;
  arrived_.synchronize();
  for (const Pending& copy : pending_) std::memcpy(copy.host, memory_ + copy.offset, copy.bytes);
  pending_.clear();
  used_ = 0;
}

}  // namespace nibblenet
