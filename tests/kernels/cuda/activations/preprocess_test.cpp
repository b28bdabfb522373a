#include "engine/io/preprocess.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/core/random.h"
#include "engine/io/augmentation.h"
#include "tests/kernels/values.h"
#include "tests/support/test_backend.h"

// Images prepared on the device are the host's, to the bit.

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::output_of;
using testing::same_bits;
using testing::Values;

struct Case {
  int width;
  int height;
  int crop;
};

/// An image of which every pixel is the one `change` moves there, black where none is.
std::vector<uint8_t> moved(const uint8_t* image, const Case& c, const Augmentation& change) {
  std::vector<uint8_t> result;
  for (int y = -change.down; y < c.height - change.down; ++y)
    for (int x = -change.right; x < c.width - change.right; ++x) {
      const bool inside = x >= 0 && x < c.width && y >= 0 && y < c.height;
      for (int channel = 0; channel < 3; ++channel)
        result.push_back(inside ? image[(y * c.width + x) * 3 + channel] : uint8_t{0});
    }
  return result;
}

TEST(CudaPreprocess, TheHostsBits) {
  const auto backend = make_test_backend();
  for (const Case& c : {Case{32, 32, 224}, Case{32, 32, 63}, Case{1, 1, 64}, Case{50, 37, 67}, Case{37, 150, 65}}) {
    SCOPED_TRACE(::testing::Message() << c.width << " x " << c.height << " to " << c.crop);
    constexpr int64_t batch = 4;
    const std::vector<Augmentation> changes = {{}, {.mirrored = 1}, {.right = -3, .down = 4}, {2, -1, 1}};
    const auto bytes = static_cast<size_t>(c.width * c.height * 3);
    std::vector<uint8_t> images(batch * bytes);
    Random random(1);
    for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
    const Preprocess preprocess = Preprocess::for_image_size(c.crop);
    Preprocessor host(preprocess);
    Values expected({batch, c.crop, c.crop, 3});
    for (size_t n = 0; n < batch; ++n)
      host.run(moved(images.data() + n * bytes, c, changes[n]).data(), c.width, c.height, changes[n].mirrored != 0,
               expected.data.data() + static_cast<int64_t>(n) * c.crop * c.crop * 3);

    const auto preparer = backend->make_image_preparer(make_resample_tables(preprocess, c.width, c.height));
    ASSERT_NE(preparer, nullptr);
    Tensor<uint8_t> pixels(*backend, {batch, c.height, c.width, 3}, MemoryCategory::data);
    Tensor<Augmentation> augmentations(*backend, {batch}, MemoryCategory::data);
    backend->copy_from_host(pixels.data(), images.data(), images.size());
    backend->copy_from_host(augmentations.data(), changes.data(), changes.size() * sizeof(Augmentation));
    const Values actual = output_of(
        *backend, expected.shape, [&](TensorView<float> x) { preparer->run(x, pixels.view(), augmentations.view()); });
    EXPECT_TRUE(same_bits(actual, expected));
  }
}

}  // namespace
}  // namespace nibblenet
