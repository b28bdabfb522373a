#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/cuda/convolution_cases.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/kernels/schemes.h"

// Products of trellis weights by every kernel, against the CPU.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::integers;
using testing::linear;
using testing::random_strings;
using testing::Values;

using Case = testing::ConvolutionCase;

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
        EXPECT_EQ(fp16_product(cuda_, c, x, *weight, bias), expected)
            << to_string(scheme) << ", " << to_string(c.x) << " by " << to_string(c.w) << ", kernels "
            << static_cast<int>(choice.mode) << " without " << choice.left_out;
      }
    }
}

}  // namespace
}  // namespace nibblenet
