// Feeds arbitrary bytes to the safetensors reader, as a file. With clang, libFuzzer drives the
// entry below; with any compiler, mutate.cpp drives it through a fixed number of mutations of valid
// files.

#include "engine/io/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

void read_everything(const std::filesystem::path& path) {
  using namespace nibblenet;
  using fuzz::require;
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
  try {
    read_everything(nibblenet::fuzz::as_file({data, size}));
  } catch (const nibblenet::FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
