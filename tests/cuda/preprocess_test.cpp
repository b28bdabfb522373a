#include "engine/io/preprocess.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/core/random.h"
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

TEST(CudaPreprocess, TheHostsBits) {
  const auto backend = make_test_backend();
  for (const Case& c : {Case{32, 32, 224}, Case{32, 32, 63}, Case{1, 1, 64}, Case{50, 37, 67}, Case{37, 150, 65}}) {
    SCOPED_TRACE(::testing::Message() << c.width << " x " << c.height << " to " << c.crop);
    constexpr int64_t batch = 3;
    const std::vector<uint8_t> flips = {0, 1, 0};
    const auto bytes = static_cast<size_t>(c.width * c.height * 3);
    std::vector<uint8_t> images(batch * bytes);
    Random random(1);
    for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
    const Preprocess preprocess = Preprocess::for_image_size(c.crop);
    Preprocessor host(preprocess);
    Values expected({batch, c.crop, c.crop, 3});
    for (size_t n = 0; n < batch; ++n)
      host.run(images.data() + n * bytes, c.width, c.height, flips[n] != 0,
               expected.data.data() + static_cast<int64_t>(n) * c.crop * c.crop * 3);

    const auto preparer = backend->make_image_preparer(make_resample_tables(preprocess, c.width, c.height));
    ASSERT_NE(preparer, nullptr);
    Tensor<uint8_t> pixels(*backend, {batch, c.height, c.width, 3}, MemoryCategory::data);
    Tensor<uint8_t> mirrored(*backend, {batch}, MemoryCategory::data);
    backend->copy_from_host(pixels.data(), images.data(), images.size());
    backend->copy_from_host(mirrored.data(), flips.data(), flips.size());
    const Values actual = output_of(*backend, expected.shape,
                                    [&](TensorView<float> x) { preparer->run(x, pixels.view(), mirrored.view()); });
    EXPECT_TRUE(same_bits(actual, expected));
  }
}

}  // namespace
}  // namespace nibblenet
