#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "training/trainer.h"

// Training on float16 activations: fused steps of SGD, whole passes against the CPU's in float32,
// loss scales, and runs that are resumed.

namespace nibblenet {
namespace {

using testing::even_alexnet;
using testing::fp16_on;
using testing::from;
using testing::on;
using testing::output_of;
using testing::relative_error;
using testing::same_bits;
using testing::state_of;
using testing::TemporaryFolder;
using testing::uniform;
using testing::Values;

struct Case {
  Shape x;
  Shape w;
  Window window = {};
};

class FusedStep : public ::testing::Test {
 protected:
  struct Result {
    Values w, w_velocity, bias, bias_velocity, forward;
  };

  /// A step from gradients, or a fused one; then the output for x by the weight's fp16 values.
  Result step(const Case& c, const SgdParameters& sgd, bool at_once) {
    const Shape y = {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]};
    Values start = uniform(c.w, 1);
    for (size_t i = 0; i < start.data.size(); i += 3) start.data[i] = 0.0F;  // pruned ones
    const auto weight = cuda_.make_trained_weight(start.view());
    Tensor<float> bias = on(cuda_, uniform({c.w[0]}, 2)), bias_velocity = on(cuda_, uniform({c.w[0]}, 3));
    Tensor<float> velocity = on(cuda_, uniform(c.w, 4));
    const Buffer<f16> dy_fp16 = fp16_on(cuda_, uniform(y, 5)), x_fp16 = fp16_on(cuda_, uniform(c.x, 6));
    const TensorView<const f16> dy(dy_fp16.data(), y), x(x_fp16.data(), c.x);
    constexpr float factor = 1.0F / 128.0F;
    if (at_once) {
      const TrainedLayer layer{*weight, bias.view(), velocity.view(), bias_velocity.view()};
      const ConstActivations of_y = is_linear(c) ? matrix(dy) : dy, of_x = is_linear(c) ? matrix(x) : x;
      EXPECT_TRUE(cuda_.fuses_step(of_y, of_x, c.window));
      cuda_.backward_step(layer, of_y, of_x, c.window, factor, sgd);
    } else {
      Tensor<float> dw(cuda_, c.w, MemoryCategory::data), dbias(cuda_, {c.w[0]}, MemoryCategory::data);
      if (is_linear(c))
        cuda_.linear_backward_weight({dw.data(), {c.w[0], c.w[1]}}, dbias.view(), matrix(dy), matrix(x));
      else
        cuda_.conv2d_backward_weight(dw.view(), dbias.view(), dy, x, c.window);
      cuda_.convert(dw.view(), dw.view(), factor);
      cuda_.convert(dbias.view(), dbias.view(), factor);
      cuda_.sgd_step(weight->values(), velocity.view(), dw.view(), sgd);
      cuda_.sgd_step(bias.view(), bias_velocity.view(), dbias.view(), sgd.of_bias());
      weight->changed();
    }
    const Values forward = output_of(cuda_, y, [&](TensorView<float> out) {
      cuda_.conv2d_forward(out, x, *weight, bias.view(), c.window, Epilogue::none);
    });
    return {from(cuda_, weight->values()), from(cuda_, velocity.view()), from(cuda_, bias.view()),
            from(cuda_, bias_velocity.view()), forward};
  }

  static bool is_linear(const Case& c) { return c.x[1] * c.x[2] * c.window.size == 1; }
  static ConstActivations matrix(ConstActivations images) { return images.reshaped({images.size(0), images.size(3)}); }

  CudaBackend cuda_;
};

TEST_F(FusedStep, HasTheBitsOfGradientsAndAStep) {
  // Superblocks and rows, rows alone, split-K, three channels, few outputs.
  const std::vector<Case> cases = {{{2, 4, 5, 64}, {64, 64, 3, 3}, {3, 1, 1}},
                                   {{2, 17, 18, 8}, {16, 8, 3, 3}, {3, 1, 1}},
                                   {{33, 1, 1, 128}, {192, 128, 1, 1}},
                                   {{1, 19, 17, 3}, {8, 3, 5, 5}, {5, 2, 1}},
                                   {{67, 1, 1, 72}, {10, 72, 1, 1}}};
  for (const Case& c : cases)
    for (const bool pruned : {false, true}) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      const SgdParameters sgd{.learning_rate = 0.1F,
                              .momentum = 0.9F,
                              .weight_decay = 0.01F,
                              .keep_zeros = pruned,
                              .bias_factor = pruned ? 1.0F : 3.0F};
      const Result expected = step(c, sgd, false), actual = step(c, sgd, true);
      EXPECT_TRUE(same_bits(actual.w, expected.w));
      EXPECT_TRUE(same_bits(actual.w_velocity, expected.w_velocity));
      EXPECT_TRUE(same_bits(actual.bias, expected.bias));
      EXPECT_TRUE(same_bits(actual.bias_velocity, expected.bias_velocity));
      EXPECT_TRUE(same_bits(actual.forward, expected.forward));
      EXPECT_EQ(actual.w.data[0] == 0.0F, pruned);
    }
}

TEST_F(FusedStep, IsNotForFloatsNorForPlainKernels) {
  const Values w = uniform({8, 8}, 1);
  const auto weight = cuda_.make_trained_weight(w.view());
  Tensor<float> bias = on(cuda_, Values({8})), velocity = on(cuda_, w), bias_velocity = on(cuda_, Values({8}));
  const Tensor<float> x = on(cuda_, uniform({3, 8}, 2));
  const TrainedLayer layer{*weight, bias.view(), velocity.view(), bias_velocity.view()};
  EXPECT_FALSE(cuda_.fuses_step(x.view(), x.view()));
  EXPECT_THROW(cuda_.backward_step(layer, x.view(), x.view(), {}, 1.0F, {}), Error);
  const Buffer<f16> fp16 = fp16_on(cuda_, uniform({3, 8}, 2));
  const TensorView<const f16> dy(fp16.data(), {3, 8});
  cuda_.choose_kernels({KernelChoice::Mode::plain});
  EXPECT_FALSE(cuda_.fuses_step(dy, dy));
  EXPECT_THROW(cuda_.backward_step(layer, dy, dy, {}, 1.0F, {}), Error);
  EXPECT_EQ(from(cuda_, weight->values()), w);
}

/// Operations whose epilogue masks a gradient and looks for overflow, and the same work by separate
/// kernels.
class GradientStores : public ::testing::Test {
 protected:
  using Run = std::function<void(Activations dx, const GradientStore& store)>;
  struct Stored {
    Values dx;
    uint32_t overflow;
  };

  Stored stored(const Shape& shape, const Values& relu_output, bool at_once, const Run& run) {
    const Buffer<f16> y = fp16_on(cuda_, relu_output), dx = fp16_on(cuda_, Values(shape));
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

  /// Compares `run` with a store and without one. The store saves `launches` of the kernels that
  /// look for overflow and mask.
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

  static GradientStore flat(GradientStore store) {
    const ConstActivations& y = store.relu_output;
    if (y.data() != nullptr) store.relu_output = y.reshaped({y.size(0), y.size(3)});
    return store;
  }

  CudaBackend cuda_;
};

TEST_F(GradientStores, OfProductsHaveTheBitsOfSeparateKernels) {
  // One block and several, split-K and none, tails.
  const std::vector<Case> cases = {{{2, 5, 6, 72}, {136, 72, 3, 3}, {3, 1, 1}},
                                   {{1, 9, 7, 8}, {8, 8, 3, 3}, {3, 1, 1}},
                                   {{33, 1, 1, 136}, {1032, 136, 1, 1}},
                                   {{129, 1, 1, 72}, {136, 72, 1, 1}},
                                   {{33, 1, 1, 136}, {10, 136, 1, 1}}};
  for (const Case& c : cases)
    for (const float largest : {1.0F, 1e9F}) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      Values dy = uniform({c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]}, 1);
      dy.data.back() *= largest;
      const Buffer<f16> gradient = fp16_on(cuda_, dy);
      const auto weight = cuda_.make_trained_weight(uniform(c.w, 2).view());
      const TensorView<const f16> from(gradient.data(), dy.shape);
      expect_same(c.x, largest > 1, [&](Activations dx, const GradientStore& store) {
        if (c.x[1] == 1)
          cuda_.linear_backward_data(dx.reshaped({c.x[0], c.x[3]}), ConstActivations(from).reshaped({c.x[0], c.w[0]}),
                                     *weight, flat(store));
        else
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
      const Buffer<f16> gradient = fp16_on(cuda_, dy);
      Tensor<uint8_t> argmax(cuda_, dy.shape, MemoryCategory::data);
      std::vector<uint8_t> positions(dy.data.size());
      for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<uint8_t>(i % 9);
      cuda_.copy_from_host(argmax.data(), positions.data(), positions.size());
      expect_same(shape, largest > 1, [&](Activations dx, const GradientStore& store) {
        cuda_.max_pool2d_backward(dx, TensorView<const f16>(gradient.data(), dy.shape), argmax.view(), window, store);
      });

      Values dropped = uniform(shape, 3);
      for (float& value : dropped.data) value *= largest;
      const Buffer<f16> fp16 = fp16_on(cuda_, dropped);
      expect_same(shape, largest > 1, [&](Activations dx, const GradientStore& store) {
        cuda_.dropout(dx, TensorView<const f16>(fp16.data(), shape), 0.3F, {1, 2, 3}, store);
      });
    }
}

TEST_F(GradientStores, DropoutInFp16IsThatOfPlainKernels) {
  for (const Shape& shape : {Shape{3, 40}, Shape{5, 7}, Shape{300, 72}, Shape{0, 8}}) {
    const Buffer<f16> fp16 = fp16_on(cuda_, uniform(shape, 3));
    const auto dropped = [&](bool plain) {
      cuda_.choose_kernels({plain ? KernelChoice::Mode::plain : KernelChoice::Mode::fast});
      Buffer<f16> y = fp16_on(cuda_, Values(shape));
      const TensorView<f16> to(y.data(), shape);
      cuda_.dropout(to, TensorView<const f16>(fp16.data(), shape), 0.3F, {1, 2, 3});
      cuda_.choose_kernels({});
      return output_of(cuda_, shape, [&](TensorView<float> floats) { cuda_.convert(floats, to); });
    };
    EXPECT_TRUE(same_bits(dropped(false), dropped(true)));
  }
}

constexpr int64_t image_size = 67;
constexpr int64_t batch = 3;

constexpr float dropout_probability = 0.3F;

/// What a training pass computed at a layer with parameters.
struct SeenLayer {
  size_t index;               ///< in the network
  Values x, y;                ///< its input, its output
  Values dy;                  ///< in front of its ReLU, times the loss scale
  std::vector<float> dw, db;  ///< not times it
};

struct SeenPass {
  std::vector<SeenLayer> layers;  ///< the last one first; empty where nobody was called
  Values dlogits;
};

Values as_floats(Backend& backend, ConstActivations x) {
  return output_of(backend, x.shape(), [&](TensorView<float> floats) { backend.convert(floats, x); });
}

/// The layer's output for x, in x's precision.
Values forward_again(Backend& backend, Layer& layer, ConstActivations x) {
  const LayerSpec& spec = layer.spec;
  const Shape shape = spec.output_shape(x.shape());
  Buffer<float> storage(backend, static_cast<size_t>(shape.elements()), MemoryCategory::data);
  const Activations y(storage.data(), shape, x.precision());
  if (spec.kind == LayerKind::conv2d)
    backend.conv2d_forward(y, x, *layer.weight, layer.bias.view(), spec.window, spec.epilogue);
  else
    backend.linear_forward(y, x, *layer.weight, layer.bias.view(), spec.epilogue);
  return as_floats(backend, y);
}

/// One step of a network's layers from `first` on.
SeenPass step_of(Network& network, size_t first, float loss_scale) {
  Backend& backend = network.backend();
  const Shape input = first == 0 ? Shape{batch, image_size, image_size, 3} : Shape{batch, network.feature_count()};
  Pass pass(network, first, network.layers().size(), input, Pass::Mode::training);
  SeenPass seen{{}, uniform({batch, 10}, 6)};
  const Tensor<float> x = on(backend, uniform(input, 10)), dy = on(backend, seen.dlogits);
  pass.forward(x.view(), {.probability = dropout_probability, .seed = 1});
  const bool finite = pass.backward(
      dy.view(),
      [&](Layer& layer, const GradientSource& gradient) {
        const auto [dw, dbias] = gradient.store();
        seen.layers.push_back({static_cast<size_t>(&layer - network.layers().data()), as_floats(backend, gradient.x),
                               forward_again(backend, layer, gradient.x), as_floats(backend, gradient.dy),
                               from(backend, dw).data, from(backend, dbias).data});
      },
      loss_scale);
  EXPECT_EQ(finite, !seen.layers.empty());
  return seen;
}

Values rounded_to_halves(Values values) {
  for (float& value : values.data) value = f16_to_f32(f32_to_f16(value));
  return values;
}

/// A float16 pass, checked layer by layer by the CPU, each time from the pass's own values. Sums in
/// another order can flip an activation across its ReLU, or choose another maximum of a window. One
/// flip among a hidden layer's 192 outputs changes the gradients behind it by 1 / sqrt(192) = 0.07;
/// from the same activations there is none.
class StepByStep {
 public:
  explicit StepByStep(Network& network) : network_(network) {}

  /// dw and dbias of a layer.
  std::pair<Values, Values> parameter_gradients(const SeenLayer& seen) {
    const LayerSpec& spec = network_.layers()[seen.index].spec;
    Values dw(spec.weight), dbias({spec.weight[0]});
    if (spec.kind == LayerKind::conv2d)
      cpu_.conv2d_backward_weight(dw.view(), dbias.view(), seen.dy.view(), seen.x.view(), spec.window);
    else
      cpu_.linear_backward_weight(dw.view(), dbias.view(), seen.dy.view(), seen.x.view());
    return {dw, dbias};
  }

  /// dy of the layer with parameters below `above`.
  Values dy_below(const SeenLayer& above, const SeenLayer& below) {
    std::vector<Shape> shapes = {below.y.shape};  // of the layers' outputs, from `below` on
    for (size_t i = below.index + 1; i < above.index; ++i)
      shapes.push_back(network_.layers()[i].spec.output_shape(shapes.back()));
    Values gradient = data_gradient(above);
    for (size_t i = above.index; --i > below.index;) {
      Values dx(shapes[i - 1 - below.index]);
      backward(network_.layers()[i].spec, dx, gradient, above, below);
      gradient = std::move(dx);
    }
    for (size_t i = 0; i < gradient.data.size(); ++i)
      if (!(below.y.data[i] > 0.0F)) gradient.data[i] = 0.0F;
    return gradient;
  }

 private:
  /// dx of a layer, by its weights as fp16.
  Values data_gradient(const SeenLayer& seen) {
    Layer& layer = network_.layers()[seen.index];
    const Values weights = rounded_to_halves(from(network_.backend(), layer.weight->values()));
    const auto weight = cpu_.make_weight(weights.view());
    Values dx(seen.x.shape);
    if (layer.spec.kind == LayerKind::conv2d)
      cpu_.conv2d_backward_data(dx.view(), seen.dy.view(), *weight, layer.spec.window);
    else
      cpu_.linear_backward_data(dx.view(), seen.dy.view(), *weight);
    return dx;
  }

  /// dx of a layer without parameters.
  void backward(const LayerSpec& spec, Values& dx, const Values& dy, const SeenLayer& above, const SeenLayer& below) {
    if (spec.kind == LayerKind::flatten) return cpu_.flatten_backward(dx.view(), dy.view());
    if (spec.kind == LayerKind::adaptive_average_pool2d)
      return cpu_.adaptive_average_pool2d_backward(dx.view(), dy.view());
    if (spec.kind == LayerKind::max_pool2d) {
      Values y(dy.shape);
      std::vector<uint8_t> positions(dy.data.size());
      const TensorView<uint8_t> argmax(positions.data(), dy.shape);
      cpu_.max_pool2d_forward(y.view(), argmax, below.y.view(), spec.window);
      return cpu_.max_pool2d_backward(dx.view(), dy.view(), argmax, spec.window);
    }
    // Dropout: what it kept is not 0, and what was 0 before has no gradient either way.
    for (size_t i = 0; i < dx.data.size(); ++i)
      dx.data[i] = above.x.data[i] != 0.0F ? dy.data[i] / (1.0F - dropout_probability) : 0.0F;
  }

  Network& network_;
  CpuBackend cpu_{2};
};

TEST(MixedTraining, GradientsOfAllLayersAreTheCpus) {
  // Gradients of activations are rounded to 11 bits up to three times from one layer to the next;
  // sums are float32.
  constexpr double rounding = 1e-3, sums = 1e-5;
  constexpr float loss_scale = 1024.0F;
  CudaBackend cuda;
  Network network = Network::for_training(cuda, even_alexnet(3), Precision::float16);
  StepByStep cpu(network);
  for (const size_t first : {size_t{0}, network.classifier_begin()})
    for (const bool plain : {false, true}) {
      cuda.choose_kernels({plain ? KernelChoice::Mode::plain : KernelChoice::Mode::fast});
      const SeenPass seen = step_of(network, first, loss_scale);
      ASSERT_EQ(seen.layers.size(), first == 0 ? 8U : 3U);
      Values dy = seen.dlogits;
      for (float& value : dy.data) value *= loss_scale;
      for (size_t i = 0; i < seen.layers.size(); ++i) {
        const SeenLayer& layer = seen.layers[i];
        SCOPED_TRACE(::testing::Message() << network.layers()[layer.index].spec.name << ", plain " << plain);
        if (i > 0) dy = cpu.dy_below(seen.layers[i - 1], layer);
        EXPECT_LE(relative_error(layer.dy.view(), dy.view()), rounding);
        Values dw(network.layers()[layer.index].spec.weight), dbias({dw.shape[0]});
        for (size_t k = 0; k < dw.data.size(); ++k) dw.data[k] = layer.dw[k] * loss_scale;
        for (size_t k = 0; k < dbias.data.size(); ++k) dbias.data[k] = layer.db[k] * loss_scale;
        const auto [expected_dw, expected_dbias] = cpu.parameter_gradients(layer);
        EXPECT_LE(relative_error(dw.view(), expected_dw.view()), sums);
        EXPECT_LE(relative_error(dbias.view(), expected_dbias.view()), sums);
      }
    }
}

TEST(MixedTraining, GradientsAreAboutThoseOfFloat32) {
  // The whole pass, with ReLUs and maxima that flip. A gradient that is wrong differs by about
  // 1.
  CpuBackend cpu(2);
  CudaBackend cuda;
  Network exact = Network::for_training(cpu, even_alexnet(3), Precision::float32);
  Network network = Network::for_training(cuda, even_alexnet(3), Precision::float16);
  const SeenPass expected = step_of(exact, 0, 1.0F), actual = step_of(network, 0, 1024.0F);
  ASSERT_EQ(actual.layers.size(), expected.layers.size());
  for (size_t i = 0; i < expected.layers.size(); ++i) {
    const SeenLayer &left = actual.layers[i], &right = expected.layers[i];
    const auto view = [](const std::vector<float>& values) {
      return TensorView<const float>(values.data(), {static_cast<int64_t>(values.size())});
    };
    EXPECT_LE(relative_error(view(left.dw), view(right.dw)), 0.25) << "layer " << left.index;
    EXPECT_LE(relative_error(view(left.db), view(right.db)), 0.25) << "layer " << left.index;
  }
}

TEST(MixedTraining, OverflowCallsNoCallback) {
  CudaBackend cuda;
  Network network = Network::for_training(cuda, even_alexnet(3), Precision::float16);
  EXPECT_EQ(step_of(network, network.classifier_begin(), 1e6F).layers.size(), 0U);
  EXPECT_EQ(step_of(network, network.classifier_begin(), 1024.0F).layers.size(), 3U);
}

TEST(MixedTraining, IsRefusedWhereItIsNotSupported) {
  CpuBackend cpu(2);
  EXPECT_THROW(Network::for_training(cpu, even_alexnet(3), Precision::float16), UsageError);
  CudaBackend cuda;
  Network inference(cuda, even_alexnet(3), Precision::float16);
  EXPECT_THROW(Pass(inference, 0, 1, {1, image_size, image_size, 3}, Pass::Mode::training), Error);
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
    EXPECT_FALSE(same_bits(state_of(whole), even_alexnet(1)));

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
    EXPECT_TRUE(same_bits(state_of(whole), state_of(network)));
    EXPECT_EQ(resumed.position().history.back().loss, uninterrupted.position().history.back().loss);
  }
}

/// Watches whether a batch comes between a change of weights and the layers that may read them
/// early.
class OrderedBackend final : public CudaBackend {
 public:
  std::set<const void*> weights;  ///< values of the layers
  int changes = 0;
  int early_reads = 0;  ///< layers behind a change, with no batch between

  void copy_from_host(void* to, const void* from, size_t bytes) override {
    CudaBackend::copy_from_host(to, from, bytes);
    if (!weights.contains(to)) return;
    ++changes;
    changed_ = true;
  }
  void gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) override {
    CudaBackend::gather_rows(y, x, rows);
    changed_ = false;
  }
  std::unique_ptr<ImagePreparer> make_image_preparer(const ResampleTables& tables) override {
    return std::make_unique<Preparer>(CudaBackend::make_image_preparer(tables), changed_);
  }
  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override {
    early_reads += changed_ ? 1 : 0;
    CudaBackend::conv2d_forward(y, x, w, bias, window, epilogue);
  }
  void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                      Epilogue epilogue) override {
    early_reads += changed_ ? 1 : 0;
    CudaBackend::linear_forward(y, x, w, bias, epilogue);
  }

 private:
  struct Preparer final : ImagePreparer {
    Preparer(std::unique_ptr<ImagePreparer> one, bool& changed) : preparer(std::move(one)), weights_changed(changed) {}
    void run(Activations x, TensorView<const uint8_t> images, TensorView<const Augmentation> changes) override {
      preparer->run(x, images, changes);
      weights_changed = false;
    }
    std::unique_ptr<ImagePreparer> preparer;
    bool& weights_changed;
  };
  bool changed_ = false;
};

TEST(MixedTraining, ABatchComesAfterWeightsArePruned) {
  const Dataset images = noise(4);
  for (const bool freeze : {true, false}) {
    SCOPED_TRACE(freeze ? "features from memory" : "images");
    OrderedBackend backend;
    Network network = Network::for_training(backend, even_alexnet(1), Precision::float16);
    for (const Layer& layer : network.layers())
      if (layer.weight) backend.weights.insert(layer.weight->values().data());
    Trainer trainer(network, images, images,
                    {.freeze_features = freeze,
                     .epochs = 1,
                     .batch_size = 2,
                     .precision = Precision::float16,
                     .image_size = 67,
                     .seed = 3,
                     .pruning = {.enabled = true, .fraction = 0.5}});
    backend.changes = 0;
    EXPECT_TRUE(trainer.run({}));
    EXPECT_GT(backend.changes, 0) << "weights were pruned";
    EXPECT_EQ(backend.early_reads, 0);
  }
}

}  // namespace
}  // namespace nibblenet
