// Feeds arbitrary bytes to the reader of PyTorch's state dicts, as a file, in both of its formats.
// With clang, libFuzzer drives the entry below; with any compiler, mutate.cpp drives it through
// mutations of valid files.

#include <set>

#include "engine/io/pth.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

void read_everything(const std::filesystem::path& path) {
  using namespace nibblenet;
  using fuzz::require;
  const PthFile file(path);
  int64_t storages = 0;
  std::vector<uint8_t> scratch;
  std::set<std::string_view> names;
  for (const PthTensor& tensor : file.tensors()) {
    require(names.insert(tensor.name).second);
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
  try {
    const std::string& path = nibblenet::fuzz::as_file({data, size});
    nibblenet::is_pth(path);
    read_everything(path);
  } catch (const nibblenet::FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
