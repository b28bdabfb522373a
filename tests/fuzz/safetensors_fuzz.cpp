// Feeds arbitrary bytes to the safetensors reader, as a file. With clang, libFuzzer drives the entry below; with any
// compiler, mutate.cpp drives it through a fixed number of mutations of valid files.

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <span>

#include "engine/io/safetensors.h"

namespace {

/// Stops the fuzzer: the input that was being tried breaks a promise of the reader.
void require(bool promise) {
  if (!promise) std::abort();
}

void read_everything(const std::filesystem::path& path) {
  using namespace nibblenet;
  const SafetensorsFile file(path);
  int64_t total = file.header_bytes();
  for (const TensorEntry& entry : file.tensors()) {
    require(file.find(entry.name) == &entry);
    total += static_cast<int64_t>(entry.bytes.size());
    try {
      const Tensor<float> tensor = read_float(file, entry, host_memory(), MemoryCategory::data);
      require(tensor.shape().elements() * static_cast<int64_t>(size_of(entry.dtype)) ==
              static_cast<int64_t>(entry.bytes.size()));
    } catch (const FormatError&) {  // no float type, or too many dimensions
    }
  }
  require(total == file.file_bytes());
  file.verify();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int descriptor = memfd_create("fuzz", 0);
  static const std::string path = fmt::format("/proc/self/fd/{}", descriptor);
  require(descriptor >= 0 && ftruncate(descriptor, 0) == 0 &&
          pwrite(descriptor, data, size, 0) == static_cast<ssize_t>(size));
  try {
    read_everything(path);
  } catch (const nibblenet::FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
