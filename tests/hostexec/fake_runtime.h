#pragma once

#include <cstddef>
#include <functional>

namespace nibblenet::hostexec {

// The part of the CUDA runtime that kernels/cuda/device/device.cu calls, over host memory:
// fake_runtime.cpp.

/// Bytes that cudaMalloc hands out at most.
void set_memory_limit(size_t bytes);
/// What cudaGetDeviceCount answers.
void set_device_count(int count);
/// Compute capability that cudaGetDeviceProperties answers: 80 is 8.0. At first 90.
void set_architecture(int architecture);

/// Copies from page-locked memory wait until the stream is waited for or does something else, as a
/// busy GPU's would.
void set_late_uploads(bool late);
/// Does those that wait.
void finish_uploads();

/// Whether a graph is being captured, and one more thing for it to do.
bool capturing();
void record(std::function<void()> action);

}  // namespace nibblenet::hostexec
