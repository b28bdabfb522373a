#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/kernels/cuda/convolution_cases.h"
#include "tests/kernels/cuda/fresh_workspace.h"
#include "tests/kernels/schemes.h"

// Products that unpack trellis strings to the fragments of superblocks: the decoder against its
// plain reference, bit for bit, and sums against those of fp16 weights of the same values.

namespace nibblenet {
namespace {

using testing::dequantized;
using testing::fp16_on;
using testing::on;
using testing::output_of;
using testing::random_strings;
using testing::same_bits;
using testing::uniform;
using testing::Values;

using Case = testing::ConvolutionCase;

/// Sequences of 64, 128, 192 and 256 channels, alone and behind others, padded and not; an odd
/// number of superblock rows; columns of one string block and of several, with and without whole
/// superblocks; enough of them for split-K.
const std::vector<Case> matrices = {{{17, 16}, {64, 16}},   {{33, 48}, {1, 48}},    {{5, 80}, {130, 80}},
                                    {{40, 272}, {65, 272}}, {{70, 64}, {192, 64}},  {{9, 1040}, {320, 1040}},
                                    {{3, 112}, {521, 112}}, {{18, 128}, {448, 128}}};
/// Several taps, slices, strides, images in a block and bands of one.
const std::vector<Case> convolutions = {{{3, 4, 5, 64}, {72, 64, 3, 3}, {3, 1, 1}},
                                        {{1, 13, 13, 128}, {64, 128, 3, 3}, {3, 1, 1}},
                                        {{2, 7, 6, 192}, {264, 192, 2, 2}, {2, 2, 1}},
                                        {{1, 19, 17, 64}, {129, 64, 5, 5}, {5, 1, 2}},
                                        {{5, 3, 3, 64}, {321, 64, 1, 1}, {1, 1, 0}}};

std::string name_of(const Scheme& scheme, const Case& c) {
  return to_string(scheme) + ", " + to_string(c.x) + " by " + to_string(c.w);
}

/// Scratch memory that counts what a kernel asks for.
class CountedWorkspace final : public Workspace {
 public:
  explicit CountedWorkspace(CudaBackend& backend) : memory_(backend) {}
  float* floats(size_t size) override {
    asked_ += size;
    return memory_.floats(size);
  }
  unsigned* counters(size_t size) override { return memory_.counters(size); }
  size_t take_asked() { return std::exchange(asked_, 0); }

 private:
  testing::FreshWorkspace memory_;
  size_t asked_ = 0;
};

/// Strings whose steps are all 1: their weights are whole numbers.
PackedTensor whole_numbers(const Shape& shape, const Scheme& scheme) {
  PackedTensor packed = random_strings(shape, scheme);
  std::fill_n(reinterpret_cast<float*>(packed.scales.data()), shape[0], trellis_scale_to);
  return packed;
}

int64_t up_to_superblocks(int64_t size) { return (size + 63) / 64 * 64; }

/// The values with zeros around them, up to `shape`, which has more rows, or columns of a matrix.
Values padded(const Values& values, const Shape& shape) {
  Values result(shape);
  const int64_t from = values.shape.inner_elements(), to = shape.inner_elements();
  for (int64_t i = 0; i < values.shape[0]; ++i)
    std::copy_n(values.data.begin() + i * from, from, result.data.begin() + i * to);
  return result;
}

class StringFragments : public ::testing::Test {
 protected:
  using Launcher = void (*)(const ForwardProduct& product, Workspace& workspace, Stream& stream);

  /// y [rows, K] by one kernel and no other.
  Values product(Launcher launcher, const Case& c, const Values& x, const WeightCuda& w) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> bias = on(cuda_, Values({c.w[0]}));
    return output_of(cuda_, product_shape(c.x, c.w, c.window), [&](TensorView<float> y) {
      const int64_t launches = cuda_.stream().launches();
      launcher(forward_product(y, TensorView<const f16>(input.data(), c.x), w, bias.view(), c.window, Epilogue::none),
               scratch_, cuda_.stream());
      EXPECT_EQ(cuda_.stream().launches(), launches + 1);
    });
  }

  /// Compares a product by strings with that by fp16 weights, which are whole superblocks.
  void expect_bits_of_fp16_weights(Launcher launcher, const Case& c, const Scheme& scheme) {
    SCOPED_TRACE(name_of(scheme, c));
    const PackedTensor packed = whole_numbers(c.w, scheme);
    const WeightCuda strings(cuda_, packed, cuda_.stream(), WeightLayout::strings);
    const Values x = uniform(c.x, 1), actual = product(launcher, c, x, strings);
    const size_t asked = scratch_.take_asked();

    const int64_t channels = up_to_superblocks(c.w[0]), columns = up_to_superblocks(c.w[1]);
    const Case whole = c.w.rank() == 2 ? Case{{c.x[0], columns}, {channels, columns}}
                                       : Case{c.x, {channels, c.w[1], c.w[2], c.w[3]}, c.window};
    const Values weights = padded(dequantized(packed), whole.w);
    const WeightCuda fp16(cuda_, weights.view(), Precision::float16, cuda_.stream(), WeightLayout::superblocks, false);
    const Values of_fp16 = product(launcher, whole, c.w.rank() == 2 ? padded(x, whole.x) : x, fp16);
    EXPECT_EQ(asked, scratch_.take_asked()) << "memory for weights";
    Values expected(actual.shape);
    for (int64_t i = 0; i < actual.shape.elements() / c.w[0]; ++i)
      std::copy_n(of_fp16.data.begin() + i * channels, c.w[0], expected.data.begin() + i * c.w[0]);
    EXPECT_TRUE(same_bits(actual, expected));
  }

  /// Each row of x, or pixel, picks a column of the weights; filters have one tap.
  void expect_values_of_the_reference(Launcher launcher, const Case& c, const Scheme& scheme) {
    SCOPED_TRACE(name_of(scheme, c));
    PackedTensor packed = random_strings(c.w, scheme);
    auto* scales = reinterpret_cast<float*>(packed.scales.data());
    for (int64_t i = 0; i < c.w[0]; ++i) scales[i] = std::fabs(scales[i]);  // -0 + 0 is 0
    const WeightCuda weight(cuda_, packed, cuda_.stream(), WeightLayout::strings);
    Values columns(c.x);
    for (int64_t i = 0; i < c.w[1]; ++i) columns.data[static_cast<size_t>(i * c.w[1] + i)] = 1.0F;
    const Values y = product(launcher, c, columns, weight), expected = dequantized(packed);
    for (int64_t i = 0; i < c.w[1]; ++i)
      for (int64_t k = 0; k < c.w[0]; ++k)
        ASSERT_EQ(y.data[static_cast<size_t>(i * c.w[0] + k)], expected.data[static_cast<size_t>(k * c.w[1] + i)])
            << "channel " << k << ", column " << i;
  }

  CudaBackend cuda_;
  CountedWorkspace scratch_{cuda_};
};

TEST_F(StringFragments, MmaDecodesTheBitsOfTheReference) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& w : {Shape{1, 16}, Shape{130, 80}, Shape{192, 48}, Shape{521, 64}})
      expect_values_of_the_reference(cuda::mma_forward, {{w[1], w[1]}, w}, scheme);
}

TEST_F(StringFragments, MmaHasTheBitsOfFp16Weights) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const auto* cases : {&matrices, &convolutions})
      for (const Case& c : *cases) expect_bits_of_fp16_weights(cuda::mma_forward, c, scheme);
}

TEST_F(StringFragments, FewPixelsDecodesTheBitsOfTheReference) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& w : {Shape{64, 64, 1, 1}, Shape{130, 128, 1, 1}, Shape{448, 64, 1, 1}})
      expect_values_of_the_reference(cuda::few_pixels_forward, {{1, w[1], 1, w[1]}, w, {1, 1, 0}}, scheme);
}

TEST_F(StringFragments, FewPixelsHasTheBitsOfFp16Weights) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Case& c : convolutions) expect_bits_of_fp16_weights(cuda::few_pixels_forward, c, scheme);
}

TEST_F(StringFragments, PoolingInTheSameKernelHasTheBitsOfSeparatePooling) {
  const WeightCuda weight(cuda_, random_strings({72, 64, 3, 3}, parse_scheme("trellis:1.25")), cuda_.stream(),
                          WeightLayout::strings);
  const Shape shape = {3, 5, 5, 64}, between = {3, 5, 5, 72}, pooled = {3, 2, 2, 72};
  const Buffer<f16> input = fp16_on(cuda_, uniform(shape, 1));
  const TensorView<const f16> x(input.data(), shape);
  const Tensor<float> bias = on(cuda_, uniform({72}, 2));
  const PoolingCase pool = {{3, 2, 0}};
  for (const Launcher launcher : {cuda::mma_forward, cuda::few_pixels_forward}) {
    Buffer<f16> results(cuda_, static_cast<size_t>(between.elements()), MemoryCategory::data);
    const auto forward = [&](const Shape& of_y, const PoolingCase& of_product) {
      const TensorView<f16> y(results.data(), of_y);
      launcher(forward_product(y, x, weight, bias.view(), {3, 1, 1}, Epilogue::relu, of_product), scratch_,
               cuda_.stream());
      return y;
    };
    const Values expected = output_of(cuda_, pooled, [&](TensorView<float> y) {
      cuda_.max_pool2d_forward(y, {}, forward(between, {}), pool.window);
    });
    const Values actual =
        output_of(cuda_, pooled, [&](TensorView<float> y) { cuda_.convert(y, forward(pooled, pool)); });
    EXPECT_TRUE(same_bits(actual, expected));
  }
}

}  // namespace
}  // namespace nibblenet
