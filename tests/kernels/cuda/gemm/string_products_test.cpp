#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/kernels/schemes.h"

// Products of trellis weights by every kernel, against the CPU.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::fp16_on;
using testing::integers;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::random_strings;
using testing::Values;

struct Case {
  Shape x;  ///< NHWC, or [N, C] of a linear layer
  Shape w;
  Window window = {};
};

/// Sequences of each length, columns that fill superblocks and that do not, several taps, blocks of
/// rows that begin inside of a string tile and that cross sequences, split-K.
const std::vector<Case> cases = {
    {{1, 4, 5, 64}, {72, 64, 3, 3}, {3, 1, 1}},
    {{2, 5, 4, 128}, {200, 128, 1, 1}, {1, 1, 0}},
    {{1, 6, 7, 64}, {320, 64, 2, 2}, {2, 1, 0}},
    {{50, 80}, {64, 80}},
    {{49, 64}, {264, 64}},
    {{17, 48}, {136, 48}},
    {{1, 4, 3, 80}, {96, 80, 3, 3}, {3, 1, 1}},
    {{130, 1040}, {288, 1040}},
    {{5, 208}, {96, 208}},
};

class StringProducts : public ::testing::Test {
 protected:
  /// In fp16 values.
  Values product(const Case& c, const Values& x, Weight& w, const Values& bias) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    Shape shape = {c.x[0], c.w[0]};
    if (c.x.rank() == 4) shape = {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]};
    return output_of(cuda_, shape, [&](TensorView<float> floats) {
      Buffer<f16> fp16 = fp16_on(cuda_, Values(shape, std::numeric_limits<float>::quiet_NaN()));
      const TensorView<f16> y(fp16.data(), shape);
      const TensorView<const f16> in(input.data(), c.x);
      if (c.x.rank() == 2)
        cuda_.linear_forward(y, in, w, offset.view(), Epilogue::none);
      else
        cuda_.conv2d_forward(y, in, w, offset.view(), c.window, Epilogue::none);
      cuda_.convert(floats, y);
    });
  }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
};

TEST_F(StringProducts, EveryKernelIsExactForIntegers) {
  // Weights and activations are integers times a power of two, so that sums are exact; fp16 rounds
  // the same sum.
  constexpr KernelChoice fast = {KernelChoice::Mode::fast}, portable = {KernelChoice::Mode::portable};
  std::vector<KernelChoice> choices = {fast, portable, testing::mma_kernels, testing::plain_kernels,
                                       testing::mma_kernels.without(Product::few_rows)};
  if (Device().has_wgmma()) choices.push_back({KernelChoice::Mode::wgmma});
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Case& c : cases) {
      PackedTensor packed = random_strings(c.w, scheme);
      std::fill_n(reinterpret_cast<float*>(packed.scales.data()), c.w[0], trellis_scale_to * 0x1p-12F);
      const Values x = integers(c.x, 5), bias = integers({c.w[0]}, 4);
      const auto on_cpu = cpu_.make_weight(packed);
      Values expected = c.x.rank() == 2 ? linear(cpu_, x, *on_cpu, bias) : conv2d(cpu_, x, *on_cpu, bias, c.window);
      for (float& value : expected.data) value = f16_to_f32(f32_to_f16(value));
      const auto weight = cuda_.make_weight(packed);
      for (const KernelChoice& choice : choices) {
        cuda_.choose_kernels(choice);
        EXPECT_EQ(product(c, x, *weight, bias), expected)
            << to_string(scheme) << ", " << to_string(c.x) << " by " << to_string(c.w) << ", kernels "
            << static_cast<int>(choice.mode) << " without " << choice.left_out;
      }
    }
}

}  // namespace
}  // namespace nibblenet
