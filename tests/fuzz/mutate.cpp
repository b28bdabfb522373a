// A main for fuzz entries that needs no libFuzzer: a fixed sequence of mutations, the same on every
// machine.
//   safetensors_fuzz ITERATIONS FILE...

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

/// Tokens of the formats reach further into a reader than random bytes do.
constexpr std::string_view words[] = {"{",
                                      "}",
                                      "[",
                                      "]",
                                      ",",
                                      ":",
                                      "\"",
                                      "\\u0000",
                                      "-1",
                                      "0",
                                      "1e9",
                                      "18446744073709551615",
                                      "9223372036854775807",
                                      "null",
                                      "\"dtype\"",
                                      "\"shape\"",
                                      "\"data_offsets\"",
                                      "\"__metadata__\"",
                                      "F32",
                                      "F16",
                                      "I64",
                                      "xxh3:",
                                      "\xFF\xFE",
                                      "\xFF\xC4",
                                      "\xFF\xDA",
                                      "\x7F\xFF\xFF\xFF",
                                      "IDAT",
                                      "PLTE",
                                      "../",
                                      "77777777777",
                                      "PK\x01\x02",
                                      "PK\x03\x04",
                                      "PK\x05\x06",
                                      "\xFF\xFF\xFF\xFF",
                                      "\xFF\xFF\xFF\x7F",
                                      "data/0",
                                      "state_dict",
                                      "torch\nFloatStorage\n",
                                      "ctorch._utils\n_rebuild_tensor_v2\n",
                                      "ccollections\nOrderedDict\n",
                                      "\x8A\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F",
                                      "h\x01",
                                      "q\x01",
                                      "(",
                                      "t",
                                      "\x85",
                                      "}",
                                      "]",
                                      "R",
                                      "Q",
                                      "b",
                                      "s",
                                      "."};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  /// One to eight edits.
  std::string operator()(std::string input) {
    for (size_t edits = 1 + below(8); edits > 0; --edits) edit(input);
    return input;
  }

 private:
  size_t below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void edit(std::string& input) {
    // Half of the edits hit the first 512 bytes, where the structure lies.
    const size_t place = below(below(2) == 0 ? std::min<size_t>(input.size(), 512) : input.size());
    const size_t length = below(std::min<size_t>(input.size() - place, 64) + 1);
    switch (below(7)) {
      case 0:
        if (!input.empty()) input[place] = static_cast<char>(input[place] ^ (1 << below(8)));
        break;
      case 1:
        if (!input.empty()) input[place] = static_cast<char>(below(256));
        break;
      case 2:
        input.erase(place, length);
        break;
      case 3:
        input.insert(place, input.substr(below(input.size()), length));
        break;
      case 4:
        input.resize(place);
        break;
      case 5:
        input.insert(place, words[below(std::size(words))]);
        break;
      default: {
        const std::string_view word = words[below(std::size(words))];
        input.replace(place, std::min(word.size(), input.size() - place), word);
      }
    }
  }

  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s ITERATIONS FILE...\n", argv[0]);
    return 2;
  }
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (seeds.back().empty()) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return 2;
    }
  }
  const long iterations = std::strtol(argv[1], nullptr, 10);
  for (long i = 0; i < iterations; ++i) {
    const std::string input = Mutator(static_cast<uint64_t>(i))(seeds[static_cast<size_t>(i) % seeds.size()]);
    // Copied to the heap at its exact length, so that a read past its end is seen by
    // AddressSanitizer.
    const std::vector<uint8_t> bytes(input.begin(), input.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld inputs, none broke the reader\n", iterations);
  return 0;
}
