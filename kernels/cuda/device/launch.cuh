#pragma once

#ifndef GPU_HOST_EXECUTION
#include <nvtx3/nvToolsExt.h>
#endif

#include <initializer_list>

#include "kernels/activations.h"
#include "kernels/cuda/device/check.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/target.h"

namespace nibblenet {

/// Launch configuration: blocks, and threads per block (one-dimensional).
struct Grid {
  dim3 blocks;
  unsigned threads;
  size_t shared_bytes = 0;  ///< of dynamic_shared()
  bool pdl = false;         ///< launched by PDL; the kernel calls pdl_wait()
  unsigned cluster = 1;     ///< blocks that differ in z alone and form a thread block cluster, at most 8
};

/// One thread per item, up to 2^20 blocks; beyond that, kernels loop over the grid.
inline Grid grid_for(int64_t items, unsigned threads = 256) {
  constexpr int64_t most = 1 << 20;
  return {dim3(static_cast<unsigned>(std::min(ceil_div(items, int64_t{threads}), most))), threads};
}

/// Work of an operation that reads or writes each of `operands` once.
inline Work moves(std::initializer_list<ConstActivations> operands, double flops = 0) {
  Work work{.flops = flops};
  for (const ConstActivations& operand : operands)
    work.bytes += static_cast<double>(operand.elements()) * static_cast<double>(bytes_of(operand.precision()));
  return work;
}

/// Lets a kernel have this much dynamic shared memory, and at least what earlier launches asked
/// for: a captured graph may still hold those. For PDL it also asks for the most shared memory in
/// place of L1 cache: a multiprocessor must be idle to change that split, so all PDL kernels ask
/// for one. Thread-safe. Throws CudaError, which names `name`.
void allow_shared_memory(const char* name, const void* kernel, size_t shared_bytes, bool pdl);

/// Whether all clusters of a grid run at once on the current device. Where they do not, the last
/// ones would wait for the first ones to end. Thread-safe. Throws CudaError, which names `name`.
bool clusters_fit(const char* name, const void* kernel, const Grid& grid);

/// Starts a kernel: opens a profiler range `name`, launches, checks for errors, and counts the
/// work. A grid without blocks starts nothing. All kernels start here.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Work& work, const Grid& grid, Stream& stream, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  allow_shared_memory(name, reinterpret_cast<const void*>(kernel), grid.shared_bytes, grid.pdl);
#ifdef GPU_HOST_EXECUTION
  hostexec::run_on(stream.get(), [=] {
    hostexec::run_grid(
        name, grid.blocks, grid.threads, [=] { kernel(static_cast<Parameters>(arguments)...); }, grid.shared_bytes,
        grid.cluster);
  });
#else
  nvtxRangePushA(name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream.get();
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (grid.pdl && stream.uses_pdl()) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {1, 1, grid.cluster};
  }
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  nvtxRangePop();
  check(status, name);
#endif
  stream.count(work);
}

}  // namespace nibblenet
