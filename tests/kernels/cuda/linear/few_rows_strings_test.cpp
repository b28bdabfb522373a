#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "engine/core/random.h"
#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/linear/launchers.h"
#include "kernels/cuda/weights/window_plan.h"
#include "tests/kernels/cuda/fresh_workspace.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Linear layers of small batches by trellis strings: the decoder against its plain reference, bit
// for bit, and sums against the CPU.

namespace nibblenet {
namespace {

using testing::dequantized;
using testing::fp16_on;
using testing::integers;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::random_strings;
using testing::relative_error;
using testing::same_bits;
using testing::uniform;
using testing::Values;

/// Activations rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

/// One sequence of each length, a whole one, several, and their padding; whole blocks of columns.
const std::vector<Shape> shapes = {{1, 16},   {64, 32},   {65, 144}, {129, 48},
                                   {200, 16}, {256, 272}, {300, 32}, {521, 16}};

class FewRowsStrings : public ::testing::Test {
 protected:
  Values product(const Values& x, const WeightCuda& w, const Values& bias, bool plain = false) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    const TensorView<const f16> fp16(input.data(), x.shape);
    return output_of(cuda_, {x.shape[0], w.shape()[0]}, [&](TensorView<float> y) {
      const ForwardProduct product = forward_product(y, fp16, w, offset.view(), {}, Epilogue::none);
      (plain ? cuda::plain_forward : cuda::few_rows_forward)(product, scratch_, cuda_.stream());
    });
  }
  WeightCuda strings(const PackedTensor& packed) { return {cuda_, packed, cuda_.stream(), WeightLayout::strings}; }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
  testing::FreshWorkspace scratch_{cuda_};
};

TEST_F(FewRowsStrings, DecodesTheBitsOfTheReference) {
  // Each row of x picks a column of the weights.
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& shape : shapes) {
      PackedTensor packed = random_strings(shape, scheme);
      auto* scales = reinterpret_cast<float*>(packed.scales.data());
      for (int64_t i = 0; i < shape[0]; ++i) scales[i] = std::fabs(scales[i]);  // -0 + 0 is 0
      const WeightCuda weight = strings(packed);
      const Values expected = dequantized(packed), bias({shape[0]});
      for (const int64_t batch : {2, 8, 16})
        for (int64_t first = 0; first < shape[1]; first += 16) {
          Values x({batch, shape[1]});
          for (int64_t n = 0; n < batch; ++n) x.data[static_cast<size_t>(n * shape[1] + first + n * 7 % 16)] = 1.0F;
          const Values y = product(x, weight, bias);
          for (int64_t n = 0; n < batch; ++n)
            for (int64_t k = 0; k < shape[0]; ++k)
              ASSERT_EQ(y.data[static_cast<size_t>(n * shape[0] + k)],
                        expected.data[static_cast<size_t>(k * shape[1] + first + n * 7 % 16)])
                  << to_string(scheme) << " " << to_string(shape) << ", channel " << k << ", row " << n << " of "
                  << batch;
        }
    }
}

TEST_F(FewRowsStrings, SumsAreThoseOfTheCpu) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& shape : {Shape{70, 1040}, Shape{256, 272}, Shape{521, 144}}) {
      const PackedTensor packed = random_strings(shape, scheme);
      const WeightCuda weight = strings(packed);
      const Values bias = uniform({shape[0]}, 2);
      for (const int64_t batch : {1, 2, 3, 8, 9, 16, 17, 48}) {
        const Values x = uniform({batch, shape[1]}, 1);
        EXPECT_LE(
            relative_error(product(x, weight, bias).view(), linear(cpu_, x, *cpu_.make_weight(packed), bias).view()),
            float16_tolerance)
            << to_string(scheme) << " " << to_string(shape) << ", batch " << batch;
      }
    }
}

TEST_F(FewRowsStrings, IsExactForIntegers) {
  // A scale of 37 makes the steps 1: weights are integers, and so is every partial sum.
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis)) {
    const Shape shape = {130, 272};
    PackedTensor packed = random_strings(shape, scheme);
    auto* scales = reinterpret_cast<float*>(packed.scales.data());
    std::fill_n(scales, shape[0], trellis_scale_to);
    const WeightCuda weight = strings(packed);
    for (const int64_t batch : {1, 2, 7, 16}) {
      const Values x = integers({batch, shape[1]}, 5), bias = integers({shape[0]}, 4);
      EXPECT_EQ(product(x, weight, bias), linear(cpu_, x, *cpu_.make_weight(packed), bias))
          << to_string(scheme) << ", batch " << batch;
    }
  }
}

TEST_F(FewRowsStrings, DigitsKeepWhatCounts) {
  // Of two rows, the digits of one have no say in the other's. Values 2^-11 of the largest are
  // exact.
  const PackedTensor packed = random_strings({64, 32}, parse_scheme("trellis:2"));
  const WeightCuda weight = strings(packed);
  const Values bias({64});
  Values x({2, 32});
  x.data[3] = 60000.0F, x.data[5] = 60000.0F / 2048, x.data[9] = -1.0F;
  x.data[32 + 4] = 0x1p-24F, x.data[32 + 6] = -0x1p-20F;
  const Values y = product(x, weight, bias);
  for (const int64_t row : {0, 1}) {
    Values alone({1, 32});
    std::copy_n(x.data.begin() + row * 32, 32, alone.data.begin());
    const Values of_row = product(alone, weight, bias), expected = linear(cpu_, alone, *cpu_.make_weight(packed), bias);
    for (int64_t k = 0; k < 64; ++k) {
      EXPECT_EQ(y.data[static_cast<size_t>(row * 64 + k)], of_row.data[static_cast<size_t>(k)]);
      EXPECT_NEAR(of_row.data[static_cast<size_t>(k)], expected.data[static_cast<size_t>(k)],
                  1e-6 * (row == 0 ? 60000.0 : 0x1p-20) * 4);
    }
  }
}

TEST_F(FewRowsStrings, ZerosAndWhatIsNotFiniteStayInTheirRows) {
  const PackedTensor packed = random_strings({64, 32}, parse_scheme("trellis:1.25"));
  const WeightCuda weight = strings(packed);
  const Values bias = uniform({64}, 2);
  for (const int64_t batch : {2, 4})
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Values x({batch, 32});
      x.data[7] = bad;
      const Values y = product(x, weight, bias);
      for (size_t k = 0; k < 64; ++k) {
        EXPECT_TRUE(std::isnan(y.data[k])) << batch;
        EXPECT_EQ(y.data[64 + k], bias.data[k]) << batch;
      }
    }
}

TEST_F(FewRowsStrings, ThePlainKernelReadsBlocksAndFilesAlike) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& shape : {Shape{65, 48}, Shape{300, 16}}) {
      const PackedTensor packed = random_strings(shape, scheme);
      const Values x = uniform({5, shape[1]}, 1), bias = uniform({shape[0]}, 2);
      const WeightCuda channels(cuda_, packed, cuda_.stream(), WeightLayout::channels);
      EXPECT_TRUE(same_bits(product(x, strings(packed), bias, true), product(x, channels, bias, true)))
          << to_string(scheme) << " " << to_string(shape);
    }
}

TEST_F(FewRowsStrings, LongRowsAreSplitUntilTheirDigitsFit) {
  // 4,112 columns are more than a block keeps digits of.
  const Shape shape = {64, 16 * 257 * 2};
  const PackedTensor packed = random_strings(shape, parse_scheme("trellis:0.5"));
  const Values x = uniform({1, shape[1]}, 1), bias = uniform({64}, 2);
  EXPECT_LE(
      relative_error(product(x, strings(packed), bias).view(), linear(cpu_, x, *cpu_.make_weight(packed), bias).view()),
      float16_tolerance);
}

TEST_F(FewRowsStrings, IsTakenForSmallBatchesOfFp16) {
  const PackedTensor packed = random_strings({130, 512}, parse_scheme("trellis:2"));
  const auto weight = cuda_.make_weight(packed);
  EXPECT_EQ(weight->resident().total(), resident_size(packed).total());
  EXPECT_EQ(weight->resident().codes + weight->resident().padding, static_cast<int64_t>(packed.codes.size()));
  const auto& resident = static_cast<const WeightCuda&>(*weight);
  for (const int64_t batch : {1, 16}) {
    const ProductCase shape = product_case({batch, 512}, {batch, 130}, {}, resident.traits());
    EXPECT_EQ(route_forward(shape, cuda_.gpu()).product, Product::few_rows);
  }
  EXPECT_THROW(WeightCuda(cuda_, packed, cuda_.stream(), WeightLayout::superblocks), Error);
  EXPECT_THROW(strings(random_strings({64, 24}, parse_scheme("trellis:2"))), Error);
}

TEST(WindowPlan, TakesAsFewShiftedWordsAsCanBe) {
  // What an integer program finds for each rate.
  const std::map<int, int> fewest = {{2, 5}, {3, 7}, {4, 10}, {5, 9}, {6, 12}, {8, 11}, {12, 16}, {16, 13}};
  for (const auto& [quarters, words] : fewest) EXPECT_EQ(plan_windows(quarters).shifted_words, words) << quarters;
}

TEST(WindowPlan, NamesWordsThatHaveTheWindows) {
  Random random(5);
  uint64_t bits[3];
  for (uint64_t& word : bits) word = random.bits();
  const auto bit_at = [&](int at) { return bits[at / 64] >> at % 64 & 1U; };
  for (const int quarters : {2, 3, 4, 5, 6, 8, 12, 16}) {
    const WindowPlan plan = plan_windows(quarters);
    for (int i = 0; i < StringBlocks::lane_channels; ++i) {
      const auto bit = static_cast<int>(trellis_bit(i, quarters));
      const bool turned = (plan.turned >> i & 1U) != 0;
      const int begin = bit - plan.place(i);
      EXPECT_GE(turned ? 0 : begin, 0);
      for (int j = 0; j < trellis_window; ++j) {
        const int in_word = plan.place(i) + j;
        ASSERT_LT(in_word, 32);
        const int at = turned ? bit / 32 * 32 + (begin + 32 + in_word) % 32 : begin + in_word;
        EXPECT_EQ(bit_at(at), bit_at(bit + j)) << quarters << " quarters, window " << i;
      }
      EXPECT_LE(63 << plan.scale(i), 255) << "a byte holds it";
      EXPECT_EQ(plan.place(i), plan.place(i - (trellis_again(i, quarters) ? 1 : 0)));
    }
  }
}

}  // namespace
}  // namespace nibblenet
