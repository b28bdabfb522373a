// Feeds arbitrary bytes to the reader of CIFAR-10: a byte with the length of the list of class
// names, the list, the test batch. A batch that begins as a pickle does is one of the Python
// version. Driven like safetensors_fuzz.cpp.

#include <algorithm>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/cifar10.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

using namespace nibblenet;
using fuzz::require;

class MemoryEntry final : public FileEntry {
 public:
  MemoryEntry(const char* name, std::span<const uint8_t> content)
      : FileEntry({name}), content_(content.begin(), content.end()) {}
  std::string location() const override { return parts().back(); }
  std::vector<uint8_t> read(size_t most) override {
    require(content_.size() <= most);
    return content_;
  }

 private:
  std::vector<uint8_t> content_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> input(data + 1, size - 1);
  const size_t names = std::min<size_t>(data[0], input.size());
  const bool python = names < input.size() && input[names] == 0x80;
  MemoryEntry meta(python ? "batches.meta" : "batches.meta.txt", input.first(names));
  MemoryEntry batch(python ? "test_batch" : "test_batch.bin", input.subspan(names));
  try {
    Cifar10Reader reader("input", Split::test, python ? CifarVersion::python : CifarVersion::binary);
    if (names > 0) require(reader.take(meta));
    require(reader.take(batch));
    const Dataset dataset = reader.finish(0);
    const size_t most = (input.size() - names) / cifar_record_bytes;
    require(python ? dataset.images.size() <= most : dataset.images.size() == most);
    require(dataset.pixels.size() == dataset.images.size() * 3 * cifar_plane_bytes);
    for (const uint8_t label : dataset.labels) require(label < dataset.classes.size());
  } catch (const FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
