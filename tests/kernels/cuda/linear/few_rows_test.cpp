#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/linear/launchers.h"
#include "tests/kernels/cuda/fresh_workspace.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Linear layers of small batches by superblocks, against the CPU and against the plain kernel.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::from;
using testing::identifier;
using testing::integers;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::superblock_methods;
using testing::superblock_schemes;
using testing::uniform;
using testing::Values;

/// Activations and weights rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

/// Around a superblock, around the four that a block owns below each other, and enough columns for
/// split-K.
const std::vector<Shape> shapes = {{64, 64}, {1, 8}, {65, 136}, {257, 56}, {70, 520}};

enum class Kernel : uint8_t { plain, few_rows };

class FewRows : public ::testing::Test {
 protected:
  Values product(const Values& x, const WeightCuda& w, const Values& bias, Kernel kernel = Kernel::few_rows,
                 Epilogue epilogue = Epilogue::none) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    const TensorView<const f16> fp16(input.data(), x.shape);
    return output_of(cuda_, {x.shape[0], w.shape()[0]}, [&](TensorView<float> y) {
      const ForwardProduct product = forward_product(y, fp16, w, offset.view(), {}, epilogue);
      if (kernel == Kernel::few_rows)
        cuda::few_rows_forward(product, scratch_, cuda_.stream());
      else
        cuda::plain_forward(product, scratch_, cuda_.stream());
    });
  }

  WeightCuda superblocks(const PackedTensor& packed) {
    return {cuda_, packed, cuda_.stream(), WeightLayout::superblocks};
  }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
  testing::FreshWorkspace scratch_{cuda_};
};

class FewRowsOf : public FewRows, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(FewRowsOf, EveryScheme) {
  const Values x = uniform({3, 192}, 1), bias = uniform({128}, 2);
  for (const Scheme& scheme : superblock_schemes(GetParam())) {
    const PackedTensor packed = quantized({128, 192}, scheme, 3);
    EXPECT_EQ(best_layout(packed), WeightLayout::superblocks);
    const Values expected = linear(cpu_, x, *cpu_.make_weight(packed), bias, Epilogue::relu);
    EXPECT_LE(
        relative_error(product(x, superblocks(packed), bias, Kernel::few_rows, Epilogue::relu).view(), expected.view()),
        float16_tolerance)
        << to_string(scheme);
  }
}

TEST_P(FewRowsOf, EveryWidthOfOddShapesAndBatches) {
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits)
    for (const Shape& shape : shapes) {
      const PackedTensor packed =
          quantized(shape, parse_scheme(fmt::format("{}:{}:channel", GetParam().name, bits)), 3);
      const WeightCuda weight = superblocks(packed);
      const Values bias = uniform({shape[0]}, 2);
      for (const int64_t batch : {1, 8, 9, 16}) {
        const Values x = uniform({batch, shape[1]}, 1);
        const Values expected = linear(cpu_, x, *cpu_.make_weight(packed), bias);
        EXPECT_LE(relative_error(product(x, weight, bias).view(), expected.view()), float16_tolerance)
            << bits << " bits, " << to_string(shape) << ", batch " << batch;
      }
    }
}

TEST_P(FewRowsOf, ThePlainKernelsReadSuperblocksToo) {
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits)
    for (const Shape& shape : {Shape{65, 131}, Shape{64, 64}}) {
      const PackedTensor packed =
          quantized(shape, parse_scheme(fmt::format("{}:{}:channel", GetParam().name, bits)), 3);
      const Values x = uniform({5, shape[1]}, 1), bias = uniform({shape[0]}, 2);
      WeightCuda blocks = superblocks(packed);
      WeightCuda channels(cuda_, packed, cuda_.stream(), WeightLayout::channels);
      EXPECT_TRUE(same_bits(product(x, blocks, bias, Kernel::plain), product(x, channels, bias, Kernel::plain)));
      const auto floats = [&](WeightCuda& w) {
        const Tensor<float> input = on(cuda_, x), offset = on(cuda_, bias);
        return output_of(cuda_, {5, shape[0]}, [&](TensorView<float> y) {
          cuda::plain_forward(forward_product(y, input.view(), w, offset.view(), {}, Epilogue::none), scratch_,
                              cuda_.stream());
        });
      };
      EXPECT_TRUE(same_bits(floats(blocks), floats(channels))) << bits << " bits, " << to_string(shape);
    }
}

INSTANTIATE_TEST_SUITE_P(Methods, FewRowsOf, ::testing::ValuesIn(superblock_methods()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST_F(FewRows, IsExactForIntegers) {
  // A scale of 2^(n-1) - 1 makes linear's steps 1: weights are integers, and so is every partial
  // sum.
  for (int bits = 2; bits <= 8; ++bits) {
    const int64_t largest = (int64_t{1} << (bits - 1)) - 1;
    for (const Shape& shape : shapes) {
      Values weights = integers(shape, 3, largest);
      weights.data[0] = static_cast<float>(largest);
      const PackedTensor packed = quantize(weights.view(), parse_scheme(fmt::format("linear:{}:tensor", bits)), "w");
      const Values x = integers({11, shape[1]}, 5), bias = integers({shape[0]}, 4);
      EXPECT_EQ(product(x, superblocks(packed), bias), linear(cpu_, x, *cpu_.make_weight(packed), bias))
          << bits << " bits, " << to_string(shape);
    }
  }
}

TEST_F(FewRows, TheUnusedCodeOfLinearSchemesStandsForZero) {
  // Only a file can hold it: nearest rounding never chooses it.
  for (int bits = 2; bits <= 8; ++bits) {
    PackedTensor packed = quantized({64, 64}, default_scheme(Method::linear, bits), 3);
    std::ranges::fill(packed.codes, uint8_t{0xFF});
    const Values x = uniform({2, 64}, 1), bias = uniform({64}, 2);
    const Values result = product(x, superblocks(packed), bias);
    for (int64_t i = 0; i < 128; ++i)
      EXPECT_EQ(result.data[static_cast<size_t>(i)], bias.data[static_cast<size_t>(i % 64)]);
  }
}

TEST_F(FewRows, AStoredCodebookIsDataOfItsTensor) {
  for (int bits = 2; bits <= 8; ++bits) {
    PackedTensor packed = quantized({64, 128}, default_scheme(Method::linear, bits), 3);
    packed.codebook.resize(size_t{1} << bits);
    for (size_t i = 0; i < packed.codebook.size(); ++i)
      packed.codebook[i] = static_cast<float>(i * i) / static_cast<float>(packed.codebook.size()) - 1.5F;
    const Values x = uniform({3, 128}, 1), bias = uniform({64}, 2);
    EXPECT_LE(relative_error(product(x, superblocks(packed), bias).view(),
                             linear(cpu_, x, *cpu_.make_weight(packed), bias).view()),
              float16_tolerance)
        << bits;
  }
}

TEST_F(FewRows, IsTakenForSmallBatchesOfFp16) {
  const PackedTensor packed = quantized({128, 512}, parse_scheme("linear:4:channel"), 3);
  const auto weight = cuda_.make_weight(packed);
  EXPECT_EQ(weight->resident().total(), resident_size(packed).total());
  const Values bias = uniform({128}, 2);
  const Tensor<float> offset = on(cuda_, bias);
  for (const int64_t batch : {1, 16}) {
    const Values x = uniform({batch, 512}, 1);
    const Buffer<f16> input = fp16_on(cuda_, x);
    const auto& resident = static_cast<const WeightCuda&>(*weight);
    const ConstActivations fp16 = TensorView<const f16>(input.data(), x.shape);
    const ProductCase shape = product_case(x.shape, {batch, 128}, {}, resident.traits());
    EXPECT_EQ(route_forward(shape, cuda_.gpu()).product, Product::few_rows);
    const Values result = output_of(cuda_, {batch, 128}, [&](TensorView<float> y) {
      cuda_.linear_forward(y, fp16, *weight, offset.view(), Epilogue::none);
    });
    EXPECT_TRUE(same_bits(result, product(x, resident, bias))) << batch;
  }
}

TEST_F(FewRows, ARecordingKnowsWhenItsScratchHasMoved) {
  const auto weight = cuda_.make_weight(quantized({128, 512}, parse_scheme("linear:4:channel"), 3));
  const Tensor<float> offset = on(cuda_, uniform({128}, 2));
  const auto forward = [&](Tensor<float>& y, const Buffer<f16>& x) {
    cuda_.linear_forward(y.view(), TensorView<const f16>(x.data(), {y.shape()[0], 512}), *weight, offset.view(),
                         Epilogue::none);
  };
  const Buffer<f16> one = fp16_on(cuda_, uniform({1, 512}, 1)), many = fp16_on(cuda_, uniform({16, 512}, 1));
  Tensor<float> y = on(cuda_, Values({1, 128})), more = on(cuda_, Values({16, 128}));
  forward(y, one);
  const Values expected = from(cuda_, std::as_const(y).view());
  const auto recording = cuda_.record([&] { forward(y, one); });
  const Values zeros({1, 128});
  cuda_.copy_from_host(y.data(), zeros.data.data(), y.view().span().size_bytes());
  recording->replay();
  EXPECT_TRUE(recording->current());
  forward(more, many);
  EXPECT_FALSE(recording->current());
  EXPECT_TRUE(same_bits(from(cuda_, std::as_const(y).view()), expected));
}

TEST_F(FewRows, OnlyWeightsThatDoNotGrowBecomeSuperblocks) {
  const auto layout = [](const Shape& shape, const char* scheme) {
    return best_layout(quantized(shape, parse_scheme(scheme), 3));
  };
  EXPECT_EQ(layout({64, 128}, "linear:4:channel"), WeightLayout::superblocks);
  EXPECT_EQ(layout({64, 128}, "nf4:4:block:64"), WeightLayout::superblocks);
  EXPECT_EQ(layout({64, 128}, "linear:4:block:32"), WeightLayout::channels);
  EXPECT_EQ(layout({64, 128}, "stable-embedding:4"), WeightLayout::channels);
  EXPECT_EQ(layout({10, 128}, "linear:4:channel"), WeightLayout::channels);
  EXPECT_EQ(layout({64, 64, 1, 1}, "linear:4:channel"), WeightLayout::superblocks);
  EXPECT_EQ(layout({64, 64, 3, 3}, "nf4:4:block:64"), WeightLayout::channels);
  EXPECT_EQ(layout({64, 96, 3, 3}, "linear:4:channel"), WeightLayout::channels);
}

}  // namespace
}  // namespace nibblenet
