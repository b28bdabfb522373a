#include <gtest/gtest.h>

#include <vector>

#include "engine/io/preprocess.h"
#include "kernels/cpu/backend_cpu.h"
#include "layers/network/pass.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

// Folded convolutions in float16 against the CPU's in float32. (In float32:
// tests/kernels/folded_conv2d_test.cpp.)

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::relative_error;
using testing::uniform;
using testing::Values;

struct Case {
  int width, height, crop;
  int64_t channels, size, stride, padding, batch;
};

Values run(Backend& backend, const FoldedConvolution& folded, const std::vector<uint8_t>& images, int64_t batch,
           Precision precision, Epilogue epilogue) {
  const auto operation = backend.make_folded_conv2d(folded, precision);
  Tensor<uint8_t> input(backend, {batch, folded.height, folded.width, 3}, MemoryCategory::data);
  backend.copy_from_host(input.data(), images.data(), images.size());
  Values values({batch, folded.rows(), folded.columns(), folded.channels_out});
  Buffer<std::byte> output(backend, values.data.size() * bytes_of(precision), MemoryCategory::data);
  operation->run({output.data(), values.shape, precision}, std::as_const(input).view(), epilogue);
  if (precision == Precision::float32) {
    backend.copy_to_host(values.data.data(), output.data(), output.bytes());
    return values;
  }
  std::vector<f16> fp16(values.data.size());
  backend.copy_to_host(fp16.data(), output.data(), output.bytes());
  for (size_t i = 0; i < fp16.size(); ++i) values.data[i] = f16_to_f32(fp16[i].bits);
  return values;
}

TEST(CudaFolded, Float16IsTheCpusFloat32RoundedOnce) {
  const auto cuda = make_test_backend();
  CpuBackend cpu(2);
  // AlexNet's; channels beyond a block of 64, in and not in whole runs of 16; more pixels than a
  // block takes; no image.
  for (const Case& c :
       {Case{32, 32, 224, 64, 11, 4, 2, 1}, Case{32, 32, 112, 80, 11, 4, 2, 2}, Case{16, 16, 112, 7, 11, 4, 2, 3},
        Case{18, 16, 56, 65, 7, 3, 1, 3}, Case{2, 2, 21, 16, 5, 2, 4, 5}, Case{32, 32, 112, 16, 11, 4, 2, 0}}) {
    SCOPED_TRACE(::testing::Message() << c.width << " x " << c.height << ", " << c.channels << " channels");
    const Values weights = uniform({c.channels, 3, c.size, c.size}, 1), bias = uniform({c.channels}, 2);
    const FoldedConvolution folded =
        fold_convolution(weights.view(), bias.view(), c.stride, c.padding,
                         make_resample_tables(Preprocess::for_image_size(c.crop), c.width, c.height));
    std::vector<uint8_t> images(static_cast<size_t>(c.batch * c.height * c.width * 3));
    Random random(4);
    for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
    for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
      const Values actual = run(*cuda, folded, images, c.batch, Precision::float16, epilogue);
      const Values expected = run(cpu, folded, images, c.batch, Precision::float32, epilogue);
      if (c.batch == 0) continue;
      // Pixels are exact in float16; filters and the result are rounded once each, by at most
      // 2^-11.
      EXPECT_LE(relative_error(actual.view(), expected.view()), 5e-4);
    }
  }
}

std::vector<float> folded_logits(Backend& backend, const std::vector<uint8_t>& images, Precision precision) {
  constexpr int image_size = 112;
  const int64_t batch = static_cast<int64_t>(images.size()) / (32 * 32 * 3);
  StateDict dict = testing::small_alexnet(6);
  testing::pack_all(dict, parse_scheme("linear:4:channel"));
  const ResampleTables tables = make_resample_tables(Preprocess::for_image_size(image_size), 32, 32);
  Network network(backend, std::move(dict), precision, &tables);
  EXPECT_EQ(static_cast<int64_t>(backend.meter().live_total()), sum(network.ledger(), "total").resident.total());
  Tensor<uint8_t> input(backend, {batch, 32, 32, 3}, MemoryCategory::data);
  backend.copy_from_host(input.data(), images.data(), images.size());
  Pass pass(network, 0, network.layers().size(), {batch, image_size, image_size, 3}, Pass::Mode::inference);
  const auto logits = pass.forward(std::as_const(input).view());
  std::vector<float> copy(static_cast<size_t>(logits.elements()));
  backend.copy_to_host(copy.data(), logits.data(), logits.span().size_bytes());
  return copy;
}

TEST(CudaFolded, NetworksGiveTheCpusLogitsInBothPrecisions) {
  const auto cuda = make_test_backend();
  CpuBackend cpu(2);
  std::vector<uint8_t> images(2 * 32 * 32 * 3);
  Random random(5);
  for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
  const std::vector<float> expected = folded_logits(cpu, images, Precision::float32);
  const Shape shape{2, 10};
  for (const auto& [precision, tolerance] : {std::pair{Precision::float32, 1e-5}, {Precision::float16, 2e-3}}) {
    const std::vector<float> actual = folded_logits(*cuda, images, precision);
    EXPECT_LE(relative_error({actual.data(), shape}, {expected.data(), shape}), tolerance);
  }
}

TEST(CudaFolded, RefusesFiltersThatItsTableCannotHold) {
  const auto cuda = make_test_backend();
  const Values weights = uniform({1, 3, 40, 40}, 1), bias = uniform({1}, 2);
  const FoldedConvolution folded = fold_convolution(weights.view(), bias.view(), 2, 0,
                                                    make_resample_tables(Preprocess::for_image_size(112), 64, 64));
  EXPECT_GT(folded.length(), 1024);
  EXPECT_THROW(cuda->make_folded_conv2d(folded, Precision::float16), UsageError);
}

}  // namespace
}  // namespace nibblenet
