#include <map>
#include <mutex>

#include "kernels/cuda/device/launch.cuh"

namespace nibblenet {
namespace {

/// Tells what kernels were compiled for.
__global__ void empty_kernel() {}

}  // namespace

std::optional<std::string> cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaErrorInsufficientDriver || status == cudaErrorInitializationError)
    return "there is no NVIDIA driver that CUDA can use";
  if (status == cudaErrorNoDevice || (status == cudaSuccess && devices == 0)) return "the driver sees no GPU";
  if (status != cudaSuccess) return fmt::format("CUDA says: {}", cudaGetErrorString(status));
  return std::nullopt;
}

void choose_gpu(int number) {
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  check(cudaSetDevice(number % devices), "cudaSetDevice");
}

Stream::Stream() : Stream(nullptr) {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  lent_ = false;
}

Stream::Stream(CUstream_st* lent) : stream_(lent), lent_(true) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(empty_kernel)), "cudaFuncGetAttributes");
  compiled_for_ = attributes.ptxVersion;
}

Stream::~Stream() {
  if (!lent_) cudaStreamDestroy(stream_);
}

void Stream::synchronize() { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

void Stream::wait(const Event& event) { check(cudaStreamWaitEvent(stream_, event.get(), 0), "cudaStreamWaitEvent"); }

Event::Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }

Event::~Event() { cudaEventDestroy(event_); }

void Event::record(Stream& stream) { check(cudaEventRecord(event_, stream.get()), "cudaEventRecord"); }

void Event::synchronize() { check(cudaEventSynchronize(event_), "waiting for an event"); }

bool Event::reached() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check(status, "waiting for an event");
  return true;
}

float Event::since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
  return milliseconds;
}

void Graph::begin(Stream& stream) {
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

void Graph::abandon(Stream& stream) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream.get(), &graph) == cudaSuccess) cudaGraphDestroy(graph);
  cudaGetLastError();  // it would be reported again by the next launch
}

void Graph::end(Stream& stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  size_t nodes = 0;
  cudaError_t status = cudaGraphGetNodes(graph, nullptr, &nodes);
  if (status == cudaSuccess) status = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  nodes_ = static_cast<int64_t>(nodes);
}

Graph::~Graph() { cudaGraphExecDestroy(graph_); }

void Graph::launch(Stream& stream) { check(cudaGraphLaunch(graph_, stream.get()), "cudaGraphLaunch"); }

Device::Device() {
  if (const auto problem = cuda_problem()) throw CudaError(*problem);
  check(cudaGetDevice(&number_), "cudaGetDevice");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, number_), "cudaGetDeviceProperties");
  int driver = 0;
  int runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
#ifdef NIBBLENET_WGMMA
  has_wgmma_ = properties.major == 9;
#endif
  l2_bytes_ = static_cast<size_t>(properties.l2CacheSize);
  for (const char byte : properties.uuid.bytes) id_ += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  description_ = fmt::format("{}, compute capability {}.{}, {} SMs, CUDA {}.{}, driver for CUDA {}.{}", properties.name,
                             properties.major, properties.minor, properties.multiProcessorCount, runtime / 1000,
                             runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
}

DeviceMemory Device::memory() const {
  size_t available = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
  return {total - available, total};
}

void* Device::allocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it would be reported again by the next launch
    const DeviceMemory state = memory();
    fail<CudaError>("the GPU has no {} bytes left: {} of {} are in use; try a smaller --batch", bytes, state.used,
                    state.total);
  }
  check(status, "cudaMalloc");
  return data;
}

void Device::deallocate(void* data) noexcept { cudaFree(data); }

void allow_shared_memory(const char* name, const void* kernel, size_t shared_bytes, bool pdl) {
  struct Allowed {
    size_t shared_bytes = 16 << 10;  ///< above this, with static shared memory, a kernel may need the attribute
    bool split = false;              ///< towards shared memory
  };
  static std::mutex mutex;
  static std::map<const void*, Allowed> kernels;
  const std::lock_guard lock(mutex);
  Allowed& allowed = kernels[kernel];
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(kernel, attribute, value), name);
  };
  if (shared_bytes > allowed.shared_bytes) {
    set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    allowed.shared_bytes = shared_bytes;
  }
  if (pdl && !allowed.split) {
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    allowed.split = true;
  }
}

bool clusters_fit(const char* name, const void* kernel, const Grid& grid) {
  allow_shared_memory(name, kernel, grid.shared_bytes, grid.pdl);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = grid.cluster;
  const cudaLaunchConfig_t config{grid.blocks, dim3(grid.threads), grid.shared_bytes, nullptr, &cluster, 1};
  int at_once = 0;
  if (cudaOccupancyMaxActiveClusters(&at_once, kernel, &config) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // it is no error of a later launch that there is no room for one
    return false;
  }
  return int64_t{grid.blocks.x} * grid.blocks.y * (grid.blocks.z / grid.cluster) <= at_once;
}

void copy_to_device(void* destination, const void* host, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(destination, host, bytes, cudaMemcpyHostToDevice, stream.get()), "copying to the GPU");
  stream.synchronize();
}

void copy_from_device(void* host, const void* source, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, stream.get()), "copying from the GPU");
  stream.synchronize();
}

void copy_on_device(void* destination, const void* source, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToDevice, stream.get()), "copying on the GPU");
}

void fill_zero(void* destination, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(destination, 0, bytes, stream.get()), "clearing memory of the GPU");
}

}  // namespace nibblenet
