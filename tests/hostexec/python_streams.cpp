// Streams for tests of the Python module whose device cuda is the CPU, by ctypes. They are what
// PyTorch's streams are to the module of a GPU: somebody else's.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

#include "tests/hostexec/fake_stream.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

/// Makes a stream, as a number.
EXPORTED uintptr_t hostexec_stream() {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  return reinterpret_cast<uintptr_t>(stream);
}

/// Copies bytes in the stream's order, no earlier than somebody waits for the stream.
EXPORTED void hostexec_copy_later(uintptr_t stream, void* to, const void* from, size_t bytes) {
  reinterpret_cast<cudaStream_t>(stream)->waiting.push_back([=] {
    std::memcpy(to, from, bytes);
    return true;
  });
}

/// The length of what the stream has still to do.
EXPORTED size_t hostexec_waiting(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream)->waiting.size(); }

/// Waits until the stream's work is done.
EXPORTED void hostexec_synchronize(uintptr_t stream) { cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(stream)); }
