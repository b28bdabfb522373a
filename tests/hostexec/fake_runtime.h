#pragma once

#include <cstddef>
#include <functional>

struct CUstream_st;

namespace nibblenet::hostexec {

// The part of the CUDA runtime that kernels/cuda/device/device.cu calls, over host memory:
// fake_runtime.cpp.

/// Bytes that cudaMalloc hands out at most.
void set_memory_limit(size_t bytes);
/// The number of devices that cudaGetDeviceCount reports.
void set_device_count(int count);
/// Compute capability that cudaGetDeviceProperties reports, and for which kernels count as
/// compiled: 80 is 8.0. It is 90 at first.
void set_architecture(int architecture);
int compiled_for();

/// Shared memory that a block may have there, in all.
size_t block_shared_limit();
/// Dynamic shared memory that a kernel is allowed by cudaFuncSetAttribute, and how often that was
/// called for any kernel.
size_t allowed_shared_memory(const void* kernel);
int attributes_set();

/// Blocks that run at once in clusters, as cudaOccupancyMaxActiveClusters counts them: 132 at
/// first.
void set_blocks_in_clusters(int blocks);

/// Delays copies from page-locked memory until somebody waits for the stream or it gets other work,
/// as a busy GPU would.
void set_late_uploads(bool late);
/// Runs the copies that are delayed.
void finish_uploads();

/// Runs work of a stream: now, or behind what the stream waits for.
void run_on(CUstream_st* stream, std::function<void()> work);

/// Whether a graph is being captured, and adding one more action to it.
bool capturing();
void record(std::function<void()> action);

}  // namespace nibblenet::hostexec
