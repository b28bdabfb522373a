#include <fmt/format.h>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

/// The code between the lines ```python and ``` of a document.
std::string python_block(const std::filesystem::path& document) {
  const std::string text = read_text(document), begin = "\n```python\n", end = "\n```\n";
  const size_t from = text.find(begin);
  if (from == std::string::npos) return "";
  return text.substr(from + begin.size(), text.find(end, from + begin.size()) - from - begin.size()) + "\n";
}

/// The reader that docs/formats.md prints, run on what the tools write.
class FormatsTest : public ToolsTest {
 protected:
  Outcome python(const std::vector<std::string>& arguments) const {
    std::vector<std::string> words{"/usr/bin/env", "python3"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return Child(words, at(""), {}, at(".python").string()).wait();
  }

  /// A float file of PyTorch's kind, and its packed one, say the same.
  static constexpr const char* comparison = R"(
import sys
for packed, exported in zip(sys.argv[1::2], sys.argv[2::2]):
    ours, theirs = read(packed), read(exported)
    assert sorted(ours) == sorted(theirs), (packed, sorted(ours))
    for name, expected in theirs.items():
        actual = ours[name]
        assert actual.dtype == np.float32 and actual.shape == expected.shape, (packed, name, actual.dtype, actual.shape)
        wrong = np.count_nonzero(actual.view(np.uint32) != expected.view(np.uint32))
        assert wrong == 0, f"{packed}: {wrong} of {expected.size} elements of {name} differ"
    print(packed, len(theirs))
)";
};

TEST_F(FormatsTest, TheReaderInTheDocumentGivesTheExportedBits) {
  const std::string reader = python_block(std::filesystem::path(NIBBLENET_SOURCE) / "docs/formats.md");
  ASSERT_NE(reader, "");
  if (python({"-c", "import numpy"}).code != 0) GTEST_SKIP() << "python3 with NumPy is not here";

  std::vector<std::string> flags;
  for (const MethodTraits& method : method_table())
    for (const Scheme& scheme : schemes_of_every_width(method.method))
      flags.push_back(fmt::format("--method {} --bits {}", method.name, bits_text(scheme)));
  for (int bits = 2; bits <= 8; ++bits) flags.push_back(fmt::format("--bits {}", bits));
  for (const char* granularity : {"tensor", "channel", "row", "block:7", "block:64", "tile:3x5", "tile:8x8"}) {
    flags.push_back(fmt::format("--method linear --bits 5 --zero-point --granularity {}", granularity));
    flags.push_back(fmt::format("--method dynamic-tree --bits 3 --scale f16 --granularity {}", granularity));
  }
  flags.emplace_back("--method dynamic-tree --bits 6 --scale-sign absolute");
  flags.emplace_back("--method linear --bits 4 --scale-sign signed --scale f16");
  flags.emplace_back("--method stable-embedding --bits 5 --granularity sorted:37 --scale f16");
  for (const char* scheme : {"trellis:1.25:channel:f16:rotated:9", "linear:4:channel:zero-point:rotated:45"})
    flags.push_back(
        fmt::format("--bits 8 --layer classifier.1={} --layer features.*=linear:8:channel:rotated", scheme));
  flags.emplace_back("--bits 8 --layer features.*=nf4:4:tile:2x2 --layer classifier.1=fp8-e5m2:8:row:f16");

  write_text(at("check.py"), reader + comparison);
  std::vector<std::string> arguments{"check.py"};
  for (size_t i = 0; i < flags.size(); ++i) {
    const std::string packed = fmt::format("{}.safetensors", i), exported = fmt::format("{}_float.safetensors", i);
    succeed(fmt::format("pack small.safetensors -o {} {}", packed, flags[i]));
    succeed(fmt::format("export {} -o {}", packed, exported));
    arguments.insert(arguments.end(), {packed, exported});
  }
  const Outcome outcome = python(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome;
  EXPECT_EQ(std::ranges::count(outcome.out, '\n'), static_cast<int64_t>(flags.size())) << outcome;
}

}  // namespace
}  // namespace nibblenet::testing
