#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/values.h"

// Max pooling of fp16 values, eight channels a thread, against the plain kernels and the CPU.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::integers;
using testing::output_of;
using testing::same_bits;
using testing::uniform;
using testing::Values;

/// Smallest, even and odd sizes each way, rows and columns that no window reaches, several blocks,
/// AlexNet's.
const std::vector<Shape> shapes = {{1, 3, 3, 8},  {1, 4, 3, 8},   {2, 3, 4, 16},    {3, 7, 9, 24},   {1, 8, 10, 40},
                                   {5, 6, 5, 64}, {1, 13, 37, 8}, {2, 13, 13, 256}, {1, 55, 55, 64}, {0, 7, 9, 8}};
constexpr Window window = {3, 2, 0};

Shape pooled(const Shape& x, Window w = window) { return {x[0], w.output(x[1]), w.output(x[2]), x[3]}; }

struct Pooled {
  Values y;
  std::vector<uint8_t> argmax;
};

class Pooling : public ::testing::Test {
 protected:
  Pooled forward(const Values& x, Window w = window) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    Tensor<uint8_t> argmax(cuda_, pooled(x.shape, w), MemoryCategory::data);
    Pooled result;
    result.y = in_fp16(argmax.shape(), [&](TensorView<f16> y) {
      cuda_.max_pool2d_forward(y, argmax.view(), TensorView<const f16>(input.data(), x.shape), w);
    });
    result.argmax.resize(static_cast<size_t>(argmax.elements()));
    cuda_.copy_to_host(result.argmax.data(), argmax.data(), result.argmax.size());
    return result;
  }

  Values backward(const Shape& x, const Values& dy, const std::vector<uint8_t>& positions, Window w = window) {
    const Buffer<f16> gradient = fp16_on(cuda_, dy);
    Tensor<uint8_t> argmax(cuda_, dy.shape, MemoryCategory::data);
    cuda_.copy_from_host(argmax.data(), positions.data(), positions.size());
    return in_fp16(x, [&](TensorView<f16> dx) {
      cuda_.max_pool2d_backward(dx, TensorView<const f16>(gradient.data(), dy.shape), argmax.view(), w);
    });
  }

  /// What `operation` writes, as floats.
  template <class Operation>
  Values in_fp16(const Shape& shape, Operation operation) {
    Buffer<f16> fp16 = fp16_on(cuda_, Values(shape, std::numeric_limits<float>::quiet_NaN()));
    const TensorView<f16> y(fp16.data(), shape);
    operation(y);
    return output_of(cuda_, shape, [&](TensorView<float> floats) { cuda_.convert(floats, y); });
  }

  template <class Run>
  auto by_plain_kernels(Run run) {
    cuda_.choose_kernels({KernelChoice::Mode::plain});
    auto result = run();
    cuda_.choose_kernels({});
    return result;
  }

  CudaBackend cuda_;
};

/// Many ties, zeros of either sign, infinities.
Values with_ties(const Shape& shape, uint64_t seed) {
  Values x = integers(shape, seed, 2);
  for (size_t i = 0; i < x.data.size(); i += 5) x.data[i] = i % 2 == 0 ? -0.0F : 0.0F;
  for (size_t i = 3; i < x.data.size(); i += 11) x.data[i] = -INFINITY;
  return x;
}

TEST_F(Pooling, Fp16HasTheBitsOfPlainKernels) {
  for (const Shape& shape : shapes)
    for (const bool ties : {false, true}) {
      SCOPED_TRACE(to_string(shape));
      const Values x = ties ? with_ties(shape, 1) : uniform(shape, 1);
      const Pooled expected = by_plain_kernels([&] { return forward(x); }), actual = forward(x);
      EXPECT_TRUE(same_bits(actual.y, expected.y));
      EXPECT_EQ(actual.argmax, expected.argmax);
      const Values dy = ties ? with_ties(pooled(shape), 2) : uniform(pooled(shape), 2);
      const Values dx = by_plain_kernels([&] { return backward(shape, dy, expected.argmax); });
      EXPECT_TRUE(same_bits(backward(shape, dy, expected.argmax), dx));
    }
}

TEST_F(Pooling, IntegersAreTheCpus) {
  CpuBackend cpu(1);
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(to_string(shape));
    const Values x = integers(shape, 3, 4), dy = integers(pooled(shape), 4);
    std::vector<uint8_t> argmax(dy.data.size());
    const TensorView<uint8_t> positions(argmax.data(), dy.shape);
    const Values y = output_of(cpu, dy.shape,
                               [&](TensorView<float> to) { cpu.max_pool2d_forward(to, positions, x.view(), window); });
    const Values dx =
        output_of(cpu, shape, [&](TensorView<float> to) { cpu.max_pool2d_backward(to, dy.view(), positions, window); });
    const Pooled actual = forward(x);
    EXPECT_EQ(actual.y, y);
    EXPECT_EQ(actual.argmax, argmax);
    EXPECT_EQ(backward(shape, dy, argmax), dx);
  }
}

TEST_F(Pooling, NaNsWinAndTheLastOfThemIsChosen) {
  Values x = uniform({1, 5, 5, 16}, 1);
  for (size_t i = 0; i < x.data.size(); i += 7) x.data[i] = std::numeric_limits<float>::quiet_NaN();
  const Pooled expected = by_plain_kernels([&] { return forward(x); }), actual = forward(x);
  EXPECT_EQ(actual.argmax, expected.argmax);
  for (size_t i = 0; i < actual.y.data.size(); ++i)
    EXPECT_TRUE(actual.y.data[i] == expected.y.data[i] ||
                (std::isnan(actual.y.data[i]) && std::isnan(expected.y.data[i])));
}

TEST_F(Pooling, OtherWindowsAndChannelsAreThePlainKernels) {
  for (const auto& [shape, w] : std::vector<std::pair<Shape, Window>>{{{2, 7, 9, 5}, {3, 2, 0}},
                                                                      {{2, 7, 9, 8}, {3, 2, 1}},
                                                                      {{2, 7, 9, 8}, {2, 2, 0}},
                                                                      {{2, 7, 9, 8}, {3, 1, 0}}}) {
    const Values x = uniform(shape, 1), dy = uniform(pooled(shape, w), 2);
    const Pooled expected = by_plain_kernels([&] { return forward(x, w); }), actual = forward(x, w);
    EXPECT_TRUE(same_bits(actual.y, expected.y));
    EXPECT_EQ(actual.argmax, expected.argmax);
    const Values dx = by_plain_kernels([&] { return backward(shape, dy, expected.argmax, w); });
    EXPECT_TRUE(same_bits(backward(shape, dy, expected.argmax, w), dx));
  }
}

}  // namespace
}  // namespace nibblenet
