#include "tests/hostexec/fake_runtime.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "tests/hostexec/fake_stream.h"
#include "tests/hostexec/scheduler.h"

#undef cudaGetDeviceProperties  // the header may name a newer version of it

using Actions = std::vector<std::function<void()>>;

/// Where an event was recorded last.
struct Recorded {
  std::chrono::steady_clock::time_point time;
  CUstream_st* stream = nullptr;
  bool reached = true;
};
struct CUevent_st {
  std::shared_ptr<Recorded> last = std::make_shared<Recorded>();
};
struct CUgraph_st {
  Actions actions;
};
struct CUgraphExec_st {
  Actions actions;
};

namespace nibblenet::hostexec {
namespace {

size_t memory_limit = size_t{4} << 30;
size_t memory_used = 0;
int device_count = std::getenv("FAKE_GPUS") != nullptr ? std::atoi(std::getenv("FAKE_GPUS")) : 1;
int current_device = 0;
int architecture = 90;
std::map<void*, size_t> allocations;
std::map<const void*, size_t> allowed_shared;
int attributes_count = 0;
int blocks_in_clusters = 132;
std::optional<Actions> captured;
std::map<const void*, size_t> page_locked;
bool late_uploads = false;
Actions uploads;

bool is_page_locked(const void* data) {
  auto after = page_locked.upper_bound(data);
  if (after == page_locked.begin()) return false;
  const auto& [begin, bytes] = *--after;
  return static_cast<const std::byte*>(data) < static_cast<const std::byte*>(begin) + bytes;
}

void perform(std::function<void()> action);

/// The default stream, where there is no other.
CUstream_st* or_default(CUstream_st* stream) {
  static CUstream_st standard{capturing, perform, {}};
  return stream != nullptr ? stream : &standard;
}

/// Runs what a stream waits for, as far as it can. Returns whether nothing is left.
bool progress(CUstream_st* stream) {
  while (!stream->waiting.empty()) {
    if (!stream->waiting.front()()) return false;
    stream->waiting.pop_front();
  }
  return true;
}

/// Returns once ready(), which may need work of the stream.
template <class Ready>
void wait_for(CUstream_st* stream, Ready ready) {
  while (!ready()) {
    progress(stream);
    if (!ready()) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

/// In dry mode memory has no contents.
void perform(std::function<void()> action) {
  if (dry()) return;
  if (captured) {
    captured->push_back(std::move(action));
  } else {
    finish_uploads();
    action();
  }
}

}  // namespace

void set_memory_limit(size_t bytes) { memory_limit = bytes; }
void set_device_count(int count) { device_count = count; }
void set_architecture(int number) { architecture = number; }
int compiled_for() { return architecture; }
size_t block_shared_limit() {
  switch (architecture) {  // CUDA C++ Programming Guide, technical specifications per compute capability
    case 80:
      return 163 << 10;
    case 90:
      return 227 << 10;
    default:
      return 99 << 10;
  }
}
size_t allowed_shared_memory(const void* kernel) { return allowed_shared[kernel]; }
int attributes_set() { return attributes_count; }
void set_blocks_in_clusters(int blocks) { blocks_in_clusters = blocks; }
void set_late_uploads(bool late) { late_uploads = late; }
void finish_uploads() {
  for (const auto& upload : std::exchange(uploads, {})) upload();
}
void run_on(CUstream_st* stream, std::function<void()> work) {
  stream = or_default(stream);
  if (captured || stream->waiting.empty()) return work();
  stream->waiting.push_back([work = std::move(work)] {
    work();
    return true;
  });
}
bool capturing() { return captured.has_value(); }
void record(std::function<void()> action) { captured->push_back(std::move(action)); }

}  // namespace nibblenet::hostexec

using namespace nibblenet::hostexec;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (captured) return cudaErrorStreamCaptureUnsupported;
  if (bytes > memory_limit - memory_used) return cudaErrorMemoryAllocation;
  if (posix_memalign(data, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  if (!dry()) std::memset(*data, 0xFF, bytes);  // NaN
  allocations[*data] = bytes;
  memory_used += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  const auto found = allocations.find(data);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  memory_used -= found->second;
  allocations.erase(found);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  if (posix_memalign(data, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  page_locked[*data] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  finish_uploads();
  page_locked.erase(data);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (late_uploads && !captured && is_page_locked(from)) {
    uploads.push_back([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
  }
  run_on(stream, [=] { perform([=] { std::memcpy(to, from, bytes); }); });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  run_on(stream, [=] { perform([=] { std::memset(to, value, bytes); }); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st{capturing, perform, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream = or_default(stream);
  finish_uploads();
  wait_for(stream, [=] { return stream->waiting.empty(); });
  return capturing() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto last = event->last = std::make_shared<Recorded>(Recorded{{}, or_default(stream), false});
  const auto action = [=] {
    last->time = std::chrono::steady_clock::now();
    last->reached = true;
  };
  if (captured)
    captured->push_back(action);
  else
    run_on(stream, action);  // nothing waits for it: uploads before it stay under way
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  finish_uploads();
  wait_for(event->last->stream, [=] { return event->last->reached; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!event->last->reached) progress(event->last->stream);
  return event->last->reached ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->last->reached) return cudaSuccess;
  or_default(stream)->waiting.push_back([last = event->last] {
    if (!last->reached) progress(last->stream);
    return last->reached;
  });
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->last->time - start->last->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  captured.emplace();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  if (!captured) return cudaErrorStreamCaptureUnmatched;
  *graph = new CUgraph_st{std::move(*captured)};
  captured.reset();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->actions};
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->actions.size();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  run_on(stream, [actions = graph->actions] {
    for (const auto& action : actions) action();
  });
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count;
  return device_count == 0 ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus, int, int) {
  std::strcpy(bus, "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  properties->uuid.bytes[15] = static_cast<char>(device);
  std::strcpy(properties->name, "host execution");
  properties->major = architecture / 10;
  properties->minor = architecture % 10;
  properties->multiProcessorCount = 1;
  properties->l2CacheSize = 1 << 20;
  properties->totalGlobalMem = memory_limit;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = architecture;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  ++attributes_count;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (static_cast<size_t>(value) > block_shared_limit()) return cudaErrorInvalidValue;
  allowed_shared[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  if (config->numAttrs != 1 || config->attrs->id != cudaLaunchAttributeClusterDimension) return cudaErrorInvalidValue;
  *clusters = blocks_in_clusters / static_cast<int>(config->attrs->val.clusterDim.z);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = memory_limit - memory_used;
  *total = memory_limit;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "error of the host execution";
  }
}

}  // extern "C"
