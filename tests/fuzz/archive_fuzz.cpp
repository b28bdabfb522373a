// Feeds arbitrary bytes to the reader of data sets, as a tar or tar.gz. Driven like
// safetensors_fuzz.cpp.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/archive.h"
#include "engine/io/dataset.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

using namespace nibblenet;
using fuzz::require;

/// Corrects the checksum of every block that looks like a header. A wrong one would be refused
/// before the reader looks at anything else.
std::vector<uint8_t> with_checksums(std::span<const uint8_t> input) {
  constexpr size_t block = 512, checksum = 148, checksum_bytes = 8, magic = 257;
  std::vector<uint8_t> tar(input.begin(), input.end());
  for (size_t at = 0; at + block <= tar.size(); at += block) {
    uint8_t* header = tar.data() + at;
    if (std::memcmp(header + magic, "ustar", 5) != 0) continue;
    std::fill_n(header + checksum, checksum_bytes, uint8_t{' '});
    const std::string digits = fmt::format("{:06o}", std::accumulate(header, header + block, 0U));
    std::copy(digits.begin(), digits.end(), header + checksum);
    header[checksum + 6] = 0;
  }
  return tar;
}

void expect_sound(const Dataset& dataset) {
  require(dataset.size() > 0 && dataset.labels.size() == dataset.images.size());
  for (const Dataset::Image& image : dataset.images) {
    require(image.width > 0 && image.height > 0);
    const size_t bytes = 3 * static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
    require(image.offset <= dataset.pixels.size() && bytes <= dataset.pixels.size() - image.offset);
  }
  for (const uint8_t label : dataset.labels) require(label < dataset.classes.size());
}

/// Reads every file of the archive. No name may lead out of it, and no file may be larger than the
/// archive can make it.
void walk(const std::string& path, size_t most) {
  walk_files(path, [&](FileEntry& entry) {
    for (const std::string& part : entry.parts())
      require(!part.empty() && part != ".." && part.find('/') == std::string::npos);
    try {
      require(entry.read(most).size() <= most);
    } catch (const FormatError&) {  // a link, a sparse file, or too large
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t plenty = 1 << 16;
  const std::string& path = fuzz::as_file(with_checksums({data, size}));
  try {
    walk(path, plenty);
  } catch (const FormatError&) {  // the only way in which an input may be refused
  }
  for (const Split split : {Split::train, Split::test}) {
    try {
      expect_sound(load_dataset(path, split));
    } catch (const FormatError&) {
    }
  }
  return 0;
}
