#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "training/trainer.h"

// Training on float16 activations: steps of SGD at once, whole passes against the CPU's in float32, loss scales, and
// runs that are resumed.

namespace nibblenet {
namespace {

using testing::even_alexnet;
using testing::from;
using testing::halves_on;
using testing::on;
using testing::output_of;
using testing::random_tensor;
using testing::relative_error;
using testing::same_bits;
using testing::TemporaryFolder;
using testing::uniform;
using testing::Values;

struct Case {
  Shape x;
  Shape w;
  Window window = {};
};

class StepAtOnce : public ::testing::Test {
 protected:
  struct Result {
    Values w, w_velocity, bias, bias_velocity, forward;
  };

  /// A step from gradients, or at once; and what the weight's halves make of x then.
  Result step(const Case& c, const SgdParameters& sgd, bool at_once) {
    const Shape y = {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]};
    Values start = uniform(c.w, 1);
    for (size_t i = 0; i < start.data.size(); i += 3) start.data[i] = 0.0F;  // pruned ones
    const auto weight = cuda_.make_trained_weight(start.view());
    Tensor<float> bias = on(cuda_, uniform({c.w[0]}, 2)), bias_velocity = on(cuda_, uniform({c.w[0]}, 3));
    Tensor<float> velocity = on(cuda_, uniform(c.w, 4));
    const Buffer<f16> dy_halves = halves_on(cuda_, uniform(y, 5)), x_halves = halves_on(cuda_, uniform(c.x, 6));
    const TensorView<const f16> dy(dy_halves.data(), y), x(x_halves.data(), c.x);
    constexpr float factor = 1.0F / 128.0F;
    if (at_once) {
      const TrainedLayer layer{*weight, bias.view(), velocity.view(), bias_velocity.view()};
      EXPECT_TRUE(cuda_.conv2d_backward_step(layer, dy, x, c.window, factor, sgd));
    } else {
      Tensor<float> dw(cuda_, c.w, MemoryCategory::data), dbias(cuda_, {c.w[0]}, MemoryCategory::data);
      cuda_.conv2d_backward_weight(dw.view(), dbias.view(), dy, x, c.window);
      cuda_.convert(dw.view(), dw.view(), factor);
      cuda_.convert(dbias.view(), dbias.view(), factor);
      cuda_.sgd_step(weight->values(), velocity.view(), dw.view(), sgd);
      SgdParameters of_bias = sgd;
      of_bias.keep_zeros = false;
      cuda_.sgd_step(bias.view(), bias_velocity.view(), dbias.view(), of_bias);
      weight->changed();
    }
    const Values forward = output_of(cuda_, y, [&](TensorView<float> out) {
      cuda_.conv2d_forward(out, x, *weight, bias.view(), c.window, Epilogue::none);
    });
    return {from(cuda_, weight->values()), from(cuda_, velocity.view()), from(cuda_, bias.view()),
            from(cuda_, bias_velocity.view()), forward};
  }

  CudaBackend cuda_;
};

TEST_F(StepAtOnce, HasTheBitsOfGradientsAndAStep) {
  // Superblocks and rows, rows alone, parts, three channels.
  const std::vector<Case> cases = {{{2, 4, 5, 64}, {64, 64, 3, 3}, {3, 1, 1}},
                                   {{2, 17, 18, 8}, {16, 8, 3, 3}, {3, 1, 1}},
                                   {{33, 1, 1, 128}, {192, 128, 1, 1}},
                                   {{1, 19, 17, 3}, {8, 3, 5, 5}, {5, 2, 1}}};
  for (const Case& c : cases)
    for (const bool pruned : {false, true}) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      const SgdParameters sgd{.learning_rate = 0.1F, .momentum = 0.9F, .weight_decay = 0.01F, .keep_zeros = pruned};
      const Result expected = step(c, sgd, false), actual = step(c, sgd, true);
      EXPECT_TRUE(same_bits(actual.w, expected.w));
      EXPECT_TRUE(same_bits(actual.w_velocity, expected.w_velocity));
      EXPECT_TRUE(same_bits(actual.bias, expected.bias));
      EXPECT_TRUE(same_bits(actual.bias_velocity, expected.bias_velocity));
      EXPECT_TRUE(same_bits(actual.forward, expected.forward));
      EXPECT_EQ(actual.w.data[0] == 0.0F, pruned);
    }
}

TEST_F(StepAtOnce, IsNotForFloatsNorForPlainKernels) {
  const Values w = uniform({8, 8}, 1);
  const auto weight = cuda_.make_trained_weight(w.view());
  Tensor<float> bias = on(cuda_, Values({8})), velocity = on(cuda_, w), bias_velocity = on(cuda_, Values({8}));
  const Tensor<float> x = on(cuda_, uniform({3, 8}, 2));
  const TrainedLayer layer{*weight, bias.view(), velocity.view(), bias_velocity.view()};
  EXPECT_FALSE(cuda_.linear_backward_step(layer, x.view(), x.view(), 1.0F, {}));
  const Buffer<f16> halves = halves_on(cuda_, uniform({3, 8}, 2));
  const TensorView<const f16> dy(halves.data(), {3, 8});
  cuda_.use_plain_kernels(true);
  EXPECT_FALSE(cuda_.linear_backward_step(layer, dy, dy, 1.0F, {}));
  EXPECT_EQ(from(cuda_, weight->values()), w);
}

/// Operations whose stores mask a gradient and look for what is not finite, and the same by kernels of their own.
class GradientStores : public ::testing::Test {
 protected:
  using Run = std::function<void(Activations dx, const GradientStore& store)>;
  struct Stored {
    Values dx;
    uint32_t overflow;
  };

  Stored stored(const Shape& shape, const Values& relu_output, bool at_once, const Run& run) {
    const Buffer<f16> y = halves_on(cuda_, relu_output), dx = halves_on(cuda_, Values(shape));
    Tensor<uint32_t> overflow(cuda_, {1}, MemoryCategory::data);
    Stored result{Values(shape), 0};
    cuda_.copy_from_host(overflow.data(), &result.overflow, sizeof(uint32_t));
    const Activations to(const_cast<f16*>(dx.data()), shape, Precision::float16);
    const GradientStore store{.relu_output = TensorView<const f16>(y.data(), shape), .overflow = overflow.view()};
    run(to, at_once ? store : GradientStore{});
    if (!at_once) cuda_.finish_gradient(to, store);
    cuda_.copy_to_host(&result.overflow, overflow.data(), sizeof(uint32_t));
    result.dx = output_of(cuda_, shape, [&](TensorView<float> floats) { cuda_.convert(floats, to); });
    return result;
  }

  /// As `run` is given a store, and as it is given none. `launches` of the kernels that look and mask are saved.
  void expect_same(const Shape& shape, bool overflows, const Run& run) {
    Values relu_output = uniform(shape, 9);
    for (size_t i = 0; i < relu_output.data.size(); i += 4) relu_output.data[i] = i % 8 == 0 ? 0.0F : -0.0F;
    const Stored expected = stored(shape, relu_output, false, run);
    const int64_t before = cuda_.stream().launches();
    const Stored actual = stored(shape, relu_output, true, run);
    const int64_t with_store = cuda_.stream().launches() - before;
    EXPECT_TRUE(same_bits(actual.dx, expected.dx));
    EXPECT_EQ(actual.overflow, expected.overflow);
    EXPECT_EQ(actual.overflow, overflows ? 1U : 0U);
    stored(shape, relu_output, false, run);
    EXPECT_EQ(cuda_.stream().launches() - before, 2 * with_store + 2);
  }

  CudaBackend cuda_;
};

TEST_F(GradientStores, OfProductsHaveTheBitsOfSeparateKernels) {
  // One block and several, in parts and whole, tails.
  const std::vector<Case> cases = {{{2, 5, 6, 72}, {136, 72, 3, 3}, {3, 1, 1}},
                                   {{1, 9, 7, 8}, {8, 8, 3, 3}, {3, 1, 1}},
                                   {{33, 1, 1, 136}, {1032, 136, 1, 1}},
                                   {{129, 1, 1, 72}, {136, 72, 1, 1}}};
  for (const Case& c : cases)
    for (const float largest : {1.0F, 1e9F}) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      Values dy = uniform({c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]}, 1);
      dy.data.back() *= largest;
      const Buffer<f16> gradient = halves_on(cuda_, dy);
      const auto weight = cuda_.make_trained_weight(uniform(c.w, 2).view());
      const TensorView<const f16> from(gradient.data(), dy.shape);
      expect_same(c.x, largest > 1, [&](Activations dx, const GradientStore& store) {
        cuda_.conv2d_backward_data(dx, from, *weight, c.window, store);
      });
    }
}

TEST_F(GradientStores, OfPoolingAndDropoutHaveTheBitsOfSeparateKernels) {
  const Window window = {3, 2, 0};
  for (const Shape& shape : {Shape{1, 3, 3, 8}, Shape{2, 13, 14, 24}, Shape{1, 27, 27, 64}})
    for (const float largest : {1.0F, 1e9F}) {
      SCOPED_TRACE(to_string(shape));
      Values dy = uniform({shape[0], window.output(shape[1]), window.output(shape[2]), shape[3]}, 1);
      for (float& value : dy.data) value *= largest;
      const Buffer<f16> gradient = halves_on(cuda_, dy);
      Tensor<uint8_t> argmax(cuda_, dy.shape, MemoryCategory::data);
      std::vector<uint8_t> positions(dy.data.size());
      for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<uint8_t>(i % 9);
      cuda_.copy_from_host(argmax.data(), positions.data(), positions.size());
      expect_same(shape, largest > 1, [&](Activations dx, const GradientStore& store) {
        cuda_.max_pool2d_backward(dx, TensorView<const f16>(gradient.data(), dy.shape), argmax.view(), window, store);
      });

      Values dropped = uniform(shape, 3);
      for (float& value : dropped.data) value *= largest;
      const Buffer<f16> halves = halves_on(cuda_, dropped);
      expect_same(shape, largest > 1, [&](Activations dx, const GradientStore& store) {
        cuda_.dropout(dx, TensorView<const f16>(halves.data(), shape), 0.3F, {1, 2, 3}, store);
      });
    }
}

TEST_F(GradientStores, DropoutOfHalvesIsThatOfPlainKernels) {
  for (const Shape& shape : {Shape{3, 40}, Shape{5, 7}, Shape{300, 72}, Shape{0, 8}}) {
    const Buffer<f16> halves = halves_on(cuda_, uniform(shape, 3));
    const auto dropped = [&](bool plain) {
      cuda_.use_plain_kernels(plain);
      Buffer<f16> y = halves_on(cuda_, Values(shape));
      const TensorView<f16> to(y.data(), shape);
      cuda_.dropout(to, TensorView<const f16>(halves.data(), shape), 0.3F, {1, 2, 3});
      cuda_.use_plain_kernels(false);
      return output_of(cuda_, shape, [&](TensorView<float> floats) { cuda_.convert(floats, to); });
    };
    EXPECT_TRUE(same_bits(dropped(false), dropped(true)));
  }
}

constexpr int64_t image_size = 67;
constexpr int64_t batch = 3;

/// One step's gradients, last layer first; empty where nobody was called.
std::vector<Tensor<float>> gradients_of(Backend& backend, Precision precision, size_t begin, float loss_scale) {
  Network network = Network::for_training(backend, even_alexnet(3), precision);
  const size_t first = begin == 0 ? 0 : network.classifier_begin();
  const Shape input = begin == 0 ? Shape{batch, image_size, image_size, 3} : Shape{batch, network.feature_count()};
  Pass pass(network, first, network.layers().size(), input, Pass::Mode::training);
  const Tensor<float> host = random_tensor(input, 10), host_gradient = random_tensor({batch, 10}, 6);
  Tensor<float> x(backend, input, MemoryCategory::data), dy(backend, {batch, 10}, MemoryCategory::data);
  backend.copy_from_host(x.data(), host.data(), host.view().span().size_bytes());
  backend.copy_from_host(dy.data(), host_gradient.data(), host_gradient.view().span().size_bytes());
  pass.forward(std::as_const(x).view(), {.probability = 0.3F, .seed = 1});
  std::vector<Tensor<float>> gradients;
  const auto keep = [&](TensorView<const float> view) {
    gradients.emplace_back(host_memory(), view.shape(), MemoryCategory::data);
    backend.copy_to_host(gradients.back().data(), view.data(), view.span().size_bytes());
  };
  const bool finite = pass.backward(
      dy.view(),
      [&](Layer&, TensorView<float> dw, TensorView<float> dbias) {
        keep(dw);
        keep(dbias);
      },
      {}, loss_scale);
  EXPECT_EQ(finite, !gradients.empty());
  return gradients;
}

TEST(MixedTraining, GradientsOfAllLayersAreTheCpus) {
  CpuBackend cpu(2);
  CudaBackend cuda;
  // Activations, weights and their gradients are rounded to 11 bits, layer after layer. An output that rounding puts on
  // the other side of its ReLU makes a gradient of its own: of a hidden layer's 192 outputs one changes the gradients
  // behind it by 1 / sqrt(192) = 0.07. On this input none does before the first two of the network's layers, whose
  // thousands of outputs there is always one among.
  constexpr double rounding = 2e-3, with_relus = 0.04;
  constexpr size_t first_two_of_all = 12;
  for (const size_t begin : {0, 1}) {  // everything; the classifier
    const auto expected = gradients_of(cpu, Precision::float32, begin, 1.0F);
    for (const bool plain : {false, true}) {
      cuda.use_plain_kernels(plain);
      const auto actual = gradients_of(cuda, Precision::float16, begin, 1024.0F);
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_LE(relative_error(actual[i].view(), expected[i].view()), i < first_two_of_all ? rounding : with_relus)
            << "layer " << i / 2 << ", plain " << plain;
    }
    cuda.use_plain_kernels(false);
  }
}

TEST(MixedTraining, OverflowCallsNobody) {
  CudaBackend cuda;
  EXPECT_EQ(gradients_of(cuda, Precision::float16, 1, 1e6F).size(), 0U);
  EXPECT_EQ(gradients_of(cuda, Precision::float16, 1, 1024.0F).size(), 6U);
}

TEST(MixedTraining, IsForBackendsThatCan) {
  CpuBackend cpu(2);
  EXPECT_THROW(Network::for_training(cpu, even_alexnet(3), Precision::float16), UsageError);
  CudaBackend cuda;
  Network inference(cuda, even_alexnet(3), Precision::float16);
  EXPECT_THROW(Pass(inference, 0, 1, {1, image_size, image_size, 3}, Pass::Mode::training), Error);
  EXPECT_THROW(inference.state(), Error);
}

Dataset noise(int count) {
  Dataset dataset;
  Random random(7);
  for (int i = 0; i < count; ++i) {
    dataset.images.push_back({32, 32, dataset.pixels.size()});
    dataset.labels.push_back(static_cast<uint8_t>(i % 10));
    for (int p = 0; p < 32 * 32 * 3; ++p) dataset.pixels.push_back(static_cast<uint8_t>(random.below(256)));
  }
  return dataset;
}

TEST(MixedTraining, AResumedRunEndsInTheSameBits) {
  const Dataset images = noise(4);
  CudaBackend cuda;
  for (const bool freeze : {true, false}) {
    const TrainingOptions options{.freeze_features = freeze,
                                  .epochs = 2,
                                  .batch_size = 2,
                                  .flip = !freeze,
                                  .shift = !freeze,
                                  .precision = Precision::float16,
                                  .image_size = 67,
                                  .seed = 3};
    Network whole = Network::for_training(cuda, even_alexnet(1), Precision::float16);
    Trainer uninterrupted(whole, images, images, options);
    ASSERT_TRUE(uninterrupted.run({}));
    EXPECT_FALSE(same_bits(whole.state(), even_alexnet(1)));

    const TemporaryFolder folder;
    const auto path = folder.path() / "checkpoint.safetensors";
    {
      Network network = Network::for_training(cuda, even_alexnet(1), Precision::float16);
      Trainer stopped(network, images, images, options);
      ASSERT_FALSE(stopped.run({.on_step = [](const TrainingPosition& p, int64_t, double) { return p.step == 3; }}));
      stopped.save_checkpoint(path);
    }
    Checkpoint checkpoint = load_checkpoint(path);
    EXPECT_EQ(checkpoint.options.precision, Precision::float16);
    EXPECT_EQ(checkpoint.position.loss_scale.finite_steps + checkpoint.position.loss_scale.skipped, 3);
    Network network = Network::for_training(cuda, std::move(checkpoint.parameters), Precision::float16);
    Trainer resumed(network, images, images, checkpoint.options);
    resumed.restore(checkpoint);
    ASSERT_TRUE(resumed.run({}));
    EXPECT_TRUE(same_bits(whole.state(), network.state()));
    EXPECT_EQ(resumed.position().history.back().loss, uninterrupted.position().history.back().loss);
  }
}

}  // namespace
}  // namespace nibblenet
