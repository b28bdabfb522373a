// Feeds arbitrary bytes to the reader of PyTorch's state dicts, as a file, in both of its formats.
// With clang, libFuzzer drives the entry below; with any compiler, mutate.cpp drives it through
// mutations of valid files.

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "engine/io/pth.h"

namespace {

/// Stops the fuzzer: the input that was being tried breaks a promise of the reader.
void require(bool promise) {
  if (!promise) std::abort();
}

void read_everything(const std::filesystem::path& path) {
  using namespace nibblenet;
  const PthFile file(path);
  int64_t storages = 0;
  std::vector<uint8_t> scratch;
  for (const PthTensor& tensor : file.tensors()) {
    require(file.find(tensor.name) == &tensor);
    storages += tensor.file_bytes;
    require(file.bytes_of(tensor, scratch).size() == tensor.elements * tensor.element->bytes);
    try {
      const Tensor<float> floats = read_float(file, tensor, host_memory(), MemoryCategory::data);
      require(static_cast<uint64_t>(floats.shape().elements()) == tensor.elements);
    } catch (const FormatError&) {  // no real numbers, or too many dimensions
    }
  }
  require(storages <= file.file_bytes());
  file.verify();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int descriptor = memfd_create("fuzz", 0);
  static const std::string path = fmt::format("/proc/self/fd/{}", descriptor);
  require(descriptor >= 0 && ftruncate(descriptor, 0) == 0 &&
          pwrite(descriptor, data, size, 0) == static_cast<ssize_t>(size));
  try {
    nibblenet::is_pth(path);
    read_everything(path);
  } catch (const nibblenet::FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
