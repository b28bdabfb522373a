#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>

#include "engine/io/posix_file.h"
#include "engine/io/state_dict.h"
#include "engine/io/training_state.h"
#include "engine/quant/packed_tensor.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using testing::Bytes;
using testing::read_bytes;
using testing::TemporaryFolder;

Tensor<float> values(const Shape& shape) {
  Tensor<float> tensor(host_memory(), shape, MemoryCategory::data);
  for (int64_t i = 0; i < shape.elements(); ++i)
    tensor.data()[i] = i % 7 == 0 ? 0.25F * static_cast<float>(i % 5) : 0.0F;
  return tensor;
}

Parameter parameter(const char* name, const Shape& shape) { return {.name = name, .value = values(shape)}; }

StateDict float_model() {
  StateDict dict;
  dict.parameters.push_back(parameter("features.0.weight", {6, 33}));
  dict.parameters.push_back(parameter("features.0.bias", {6}));
  dict.metadata = {{"image_size", "64"}, {"classes", R"(["cat","dog"])"}};
  return dict;
}

StateDict packed_model(const char* scheme) {
  StateDict dict = float_model();
  Parameter& weight = dict.parameters[0];
  weight.value = quantize(weight.values().view(), parse_scheme(scheme), weight.name);
  dict.metadata["calibration_data"] = "image folder, train";
  return dict;
}

StateDict checkpoint() {
  StateDict dict = float_model();
  dict.parameters.push_back(parameter("momentum.features.0.weight", {6, 33}));
  dict.parameters.push_back(parameter("latent.features.0.weight", {6, 33}));
  dict.metadata["training_options"] = R"({"schedule":"cosine","seed":3})";
  dict.metadata[training_position_key] = R"({"epoch":1,"batch":0})";
  return dict;
}

struct Kind {
  const char* name;
  std::function<StateDict()> make;
  Compression compression = Compression::none;
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

/// A file of each kind that this program writes, held in memory: files on a disk take minutes.
class Damage : public ::testing::TestWithParam<Kind> {
 protected:
  Damage() {
    const TemporaryFolder folder;
    save_state_dict(folder.path() / "file", GetParam().make(), GetParam().compression);
    bytes_ = read_bytes(folder.path() / "file");
    write(0, bytes_);
  }
  void write(size_t at, std::span<const uint8_t> bytes) const {
    ASSERT_EQ(pwrite(memory_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(bytes.size()));
  }
  void resize(size_t size) const { ASSERT_EQ(ftruncate(memory_.get(), static_cast<off_t>(size)), 0); }
  StateDict load() const { return load_state_dict(fmt::format("/proc/self/fd/{}", memory_.get())); }
  bool refused() const {
    try {
      load();
      return false;
    } catch (const FormatError&) {
      return true;
    }
  }

  FileDescriptor memory_{memfd_create("file", MFD_CLOEXEC)};
  Bytes bytes_;
};

TEST_P(Damage, EverySingleBitFlipIsRefused) {
  ASSERT_FALSE(refused());
  ASSERT_LT(bytes_.size(), 8'000U) << "every bit of a larger file takes too long";
  for (size_t at = 0; at < bytes_.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      const auto flipped = static_cast<uint8_t>(bytes_[at] ^ (1 << bit));
      write(at, {&flipped, 1});
      EXPECT_TRUE(refused()) << "byte " << at << ", bit " << bit;
    }
    write(at, {&bytes_[at], 1});
  }
  EXPECT_FALSE(refused());
}

TEST_P(Damage, AFileCutAtAnyLengthIsRefused) {
  for (size_t size = bytes_.size(); size-- > 0;) {
    resize(size);
    EXPECT_TRUE(refused()) << size << " bytes";
  }
  resize(bytes_.size());
  write(0, bytes_);
  EXPECT_FALSE(refused());
  resize(bytes_.size() + 1);
  EXPECT_TRUE(refused()) << "a byte too many";
}

TEST_P(Damage, AHoleInThePlaceOfABlockIsRefused) {
  const Bytes zeros(512);
  for (size_t at = 0; at < bytes_.size(); at += zeros.size()) {
    const std::span<const uint8_t> block =
        std::span(bytes_).subspan(at).first(std::min(zeros.size(), bytes_.size() - at));
    if (std::ranges::equal(block, std::span(zeros).first(block.size()))) continue;
    write(at, std::span(zeros).first(block.size()));
    EXPECT_TRUE(refused()) << "from byte " << at;
    write(at, block);
  }
}

INSTANTIATE_TEST_SUITE_P(
    EveryKindOfFile, Damage,
    ::testing::Values(Kind{"float", float_model},
                      Kind{"packed", [] { return packed_model("linear:4:block:16:f16:zero-point"); }},
                      Kind{"codebook", [] { return packed_model("kmeans:3:channel"); }},
                      Kind{"compressed", [] { return packed_model("linear:8:channel"); }, Compression::rans},
                      Kind{"checkpoint", checkpoint}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace nibblenet
