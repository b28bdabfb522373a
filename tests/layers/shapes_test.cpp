#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/quant/packed_tensor.h"
#include "tests/layers/host_layers.h"

namespace nibblenet {
namespace {

using testing::conv2d_backward;
using testing::HostLayers;
using testing::linear_backward;
using testing::uniform;
using testing::Values;

/// Operands of which only the shape matters: the checks come before any access, so all may share
/// one element.
template <class T = float>
TensorView<T> of(const Shape& shape) {
  static T element{};
  return {&element, shape};
}

std::unique_ptr<Weight> weight(Backend& backend, const Shape& shape) {
  return backend.make_weight(uniform(shape, 1).view());
}

struct Refusal {
  std::string what;
  std::function<void(Backend&)> call;
};

void expect_refused(const std::vector<Refusal>& refusals) {
  const auto backend = make_backend("cpu", 2);
  for (const Refusal& refusal : refusals) EXPECT_THROW(refusal.call(*backend), ShapeError) << refusal.what;
}

/// A convolution of x[2,5,4,3] with w[6,3,3,3] to y[2,5,4,6], but for what a case replaces.
struct ConvShapes {
  Shape x = {2, 5, 4, 3};
  Shape w = {6, 3, 3, 3};
  Shape y = {2, 5, 4, 6};
  Shape bias = {6};
  Window window = {3, 1, 1};
};

TEST(Shapes, Conv2dRefusesWhatDoesNotFit) {
  const std::vector<std::pair<std::string, ConvShapes>> cases = {
      {"x of rank 3", {.x = {5, 4, 3}}},
      {"x of other channels", {.x = {2, 5, 4, 6}}},
      {"x in PyTorch's order", {.x = {2, 3, 5, 4}}},
      {"w of rank 2", {.w = {6, 27}}},
      {"w of other channels", {.w = {6, 4, 3, 3}}},
      {"filters of another size than the window", {.w = {6, 3, 5, 5}}},
      {"filters that are not square", {.w = {6, 3, 3, 1}}},
      {"y of another batch", {.y = {3, 5, 4, 6}}},
      {"y of other sizes", {.y = {2, 4, 5, 6}}},
      {"y of other channels", {.y = {2, 5, 4, 7}}},
      {"y of rank 2", {.y = {2, 120}}},
      {"bias too long", {.bias = {7}}},
      {"bias of rank 2", {.bias = {1, 6}}},
      {"stride of 0", {.window = {3, 0, 1}}},
      {"stride below 0", {.window = {3, -1, 1}}},
      {"padding below 0", {.window = {3, 1, -1}}},
      {"window larger than the padded input", {.w = {6, 3, 7, 7}, .window = {7, 1, 1}}},
      {"another stride", {.window = {3, 2, 1}}},
      {"no padding", {.window = {3, 1, 0}}},
  };
  std::vector<Refusal> refusals;
  for (const auto& [what, s] : cases) {
    refusals.push_back({what, [s](Backend& b) {
                          conv2d_forward(b, of(s.y), of(s.x), *weight(b, s.w), of(s.bias), s.window, Epilogue::none);
                        }});
    refusals.push_back({what + ", weight gradient", [s](Backend& b) {
                          conv2d_backward_weight(b.training(), of(s.w), of(s.bias), of(s.y), of(s.x), s.window);
                        }});
    if (s.bias != ConvShapes().bias) continue;  // the data gradient has none
    refusals.push_back({what + ", data gradient", [s](Backend& b) {
                          conv2d_backward_data(b.training(), of(s.x), of(s.y), *weight(b, s.w), s.window);
                        }});
  }
  const ConvShapes s;
  refusals.push_back({"dx of another shape", [s](Backend& b) {
                        conv2d_backward_data(b.training(), of({2, 4, 5, 3}), of(s.y), *weight(b, s.w), s.window);
                      }});
  refusals.push_back({"dw of another shape", [s](Backend& b) {
                        conv2d_backward_weight(b.training(), of({3, 6, 3, 3}), of(s.bias), of(s.y), of(s.x), s.window);
                      }});
  expect_refused(refusals);
}

TEST(Shapes, LinearRefusesWhatDoesNotFit) {
  struct LinearShapes {
    Shape x = {2, 5};
    Shape w = {3, 5};
    Shape y = {2, 3};
    Shape bias = {3};
  };
  const std::vector<std::pair<std::string, LinearShapes>> cases = {
      {"x of rank 4", {.x = {2, 1, 1, 5}}},   {"x of rank 1", {.x = {5}}},       {"x too narrow", {.x = {2, 4}}},
      {"w of rank 4", {.w = {3, 5, 1, 1}}},   {"w transposed", {.w = {5, 3}}},   {"y of another batch", {.y = {1, 3}}},
      {"y of other channels", {.y = {2, 5}}}, {"bias too short", {.bias = {2}}},
  };
  std::vector<Refusal> refusals;
  for (const auto& [what, s] : cases) {
    refusals.push_back(
        {what, [s](Backend& b) { linear_forward(b, of(s.y), of(s.x), *weight(b, s.w), of(s.bias), Epilogue::none); }});
    refusals.push_back({what + ", weight gradient", [s](Backend& b) {
                          linear_backward_weight(b.training(), of(s.w), of(s.bias), of(s.y), of(s.x));
                        }});
    if (s.bias != LinearShapes().bias) continue;  // the data gradient has none
    refusals.push_back({what + ", data gradient",
                        [s](Backend& b) { linear_backward_data(b.training(), of(s.x), of(s.y), *weight(b, s.w)); }});
  }
  const LinearShapes s;
  refusals.push_back({"dx of another shape", [s](Backend& b) {
                        linear_backward_data(b.training(), of({5, 2}), of(s.y), *weight(b, s.w));
                      }});
  refusals.push_back({"dw of another shape", [s](Backend& b) {
                        linear_backward_weight(b.training(), of({5, 3}), of(s.bias), of(s.y), of(s.x));
                      }});
  expect_refused(refusals);
}

TEST(Shapes, MaxPool2dRefusesWhatDoesNotFit) {
  const auto forward = [](const Shape& y, const Shape& argmax, const Shape& x, Window window) {
    return [=](Backend& b) { max_pool2d_forward(b, of(y), of<uint8_t>(argmax), of(x), window); };
  };
  const auto backward = [](const Shape& dx, const Shape& dy, const Shape& argmax, Window window) {
    return [=](Backend& b) { max_pool2d_backward(b.training(), of(dx), of(dy), of<uint8_t>(argmax), window); };
  };
  const Shape x = {2, 7, 5, 3}, y = {2, 3, 2, 3};
  const Window window = {3, 2, 0};
  expect_refused({
      {"x of rank 2", forward(y, y, {2, 105}, window)},
      {"y of other sizes", forward({2, 2, 3, 3}, y, x, window)},
      {"y of other channels", forward({2, 3, 2, 4}, y, x, window)},
      {"positions of another shape", forward(y, {2, 3, 2, 4}, x, window)},
      {"window larger than the input", forward(y, y, x, {6, 2, 0})},
      {"window of 0", forward(y, y, x, {0, 2, 0})},
      {"stride of 0", forward(y, y, x, {3, 0, 0})},
      {"padding below 0", forward(y, y, x, {3, 2, -1})},
      {"padding beyond half the window", forward({2, 5, 4, 3}, {2, 5, 4, 3}, x, {3, 2, 2})},
      {"window beyond 15, where positions fit no byte",
       forward({2, 1, 1, 3}, {2, 1, 1, 3}, {2, 16, 16, 3}, {16, 1, 0})},
      {"dx of rank 3", backward({7, 5, 3}, y, y, window)},
      {"dx of other sizes", backward({2, 5, 7, 3}, y, y, window)},
      {"dy of another batch", backward(x, {1, 3, 2, 3}, {1, 3, 2, 3}, window)},
      {"positions of another shape than dy", backward(x, y, {2, 2, 3, 3}, window)},
  });
}

TEST(Shapes, OtherLayersRefuseWhatDoesNotFit) {
  const auto adaptive = [](const Shape& small, const Shape& x) {
    return std::vector<Refusal>{
        {"adaptive pool", [=](Backend& b) { adaptive_average_pool2d_forward(b, of(small), of(x)); }},
        {"adaptive pool backward",
         [=](Backend& b) { adaptive_average_pool2d_backward(b.training(), of(x), of(small)); }}};
  };
  expect_refused(adaptive({1, 6, 6, 3}, {2, 9, 9, 3}));
  expect_refused(adaptive({2, 6, 6, 4}, {2, 9, 9, 3}));
  expect_refused(adaptive({2, 6, 0, 3}, {2, 9, 9, 3}));
  expect_refused(adaptive({2, 6, 6, 3}, {2, 0, 9, 3}));
  expect_refused(adaptive({2, 108}, {2, 9, 9, 3}));

  const auto flatten = [](const Shape& flat, const Shape& x) {
    return std::vector<Refusal>{
        {"flatten", [=](Backend& b) { flatten_forward(b, of(flat), of(x)); }},
        {"flatten backward", [=](Backend& b) { flatten_backward(b.training(), of(x), of(flat)); }}};
  };
  expect_refused(flatten({2, 30}, {2, 3, 5, 1}));
  expect_refused(flatten({30}, {2, 3, 5, 1}));
  expect_refused(flatten({2, 15}, {2, 15}));

  const auto dropout = [](const Shape& y, const Shape& x, float probability) {
    return std::vector<Refusal>{
        {"dropout", [=](Backend& b) { dropout_forward(b.training(), of(y), of(x), probability, {}); }},
        {"dropout backward", [=](Backend& b) { dropout_backward(b.training(), of(y), of(x), probability, {}); }}};
  };
  expect_refused(dropout({2, 3}, {3, 2}, 0.5F));
  for (const float probability : {-0.1F, 1.1F, std::numeric_limits<float>::quiet_NaN()})
    expect_refused(dropout({1, 1}, {1, 1}, probability));

  const auto cross = [](const Shape& losses, const Shape& dlogits, const Shape& logits, const Shape& labels) {
    return [=](Backend& b) { cross_entropy(b, of(losses), of(dlogits), of(logits), of<int32_t>(labels)); };
  };
  const auto soft = [](const Shape& losses, const Shape& dlogits, const Shape& logits, const Shape& targets) {
    return [=](Backend& b) { soft_cross_entropy(b.training(), of(losses), of(dlogits), of(logits), of(targets)); };
  };
  expect_refused({
      {"logits of rank 1", cross({3}, {3}, {3}, {3})},
      {"no classes", cross({3}, {3, 0}, {3, 0}, {3})},
      {"labels of another batch", cross({3}, {3, 10}, {3, 10}, {4})},
      {"targets of other classes", soft({3}, {3, 10}, {3, 10}, {3, 9})},
      {"targets of another batch", soft({3}, {3, 10}, {3, 10}, {4, 10})},
      {"soft losses of another batch", soft({4}, {3, 10}, {3, 10}, {3, 10})},
      {"soft gradient of another shape", soft({3}, {10, 3}, {3, 10}, {3, 10})},
      {"losses of another batch", cross({4}, {3, 10}, {3, 10}, {3})},
      {"gradient of another shape", cross({3}, {10, 3}, {3, 10}, {3})},
  });
}

TEST(Shapes, PackedWeightsHaveNoInputGradient) {
  const auto backend = make_backend("cpu", 2);
  const auto packed = [&](const Shape& shape) {
    return backend->make_weight(quantize(uniform(shape, 1).view(), parse_scheme("linear"), "w"));
  };
  const ConvShapes s;
  EXPECT_THROW(conv2d_backward_data(backend->training(), of(s.x), of(s.y), *packed(s.w), s.window), Error);
  EXPECT_THROW(linear_backward_data(backend->training(), of({2, 5}), of({2, 3}), *packed({3, 5})), Error);
}

/// A last batch may be empty: nothing comes out, and weights do not move.
class EmptyBatch : public ::testing::Test {
 protected:
  HostLayers layers_;
};

TEST_F(EmptyBatch, LayersWithWeightsHaveGradientsOfZero) {
  const Shape filters = {6, 3, 3, 3}, matrix = {7, 5};
  const Values w = uniform(filters, 1), m = uniform(matrix, 1);
  const Window window = {3, 1, 1};

  const Values image({0, 5, 4, 3}), convolved({0, 5, 4, 6});
  EXPECT_EQ(layers_.conv2d(image, w, uniform({6}, 2), window), convolved);
  const auto conv = layers_.conv2d_backward(convolved, image, w, window);
  EXPECT_EQ(conv.x, image);
  EXPECT_EQ(conv.w, Values(filters));
  EXPECT_EQ(conv.bias, Values({6}));

  const Values flat({0, 5}), product({0, 7});
  EXPECT_EQ(layers_.linear(flat, m, uniform({7}, 2)), product);
  const auto linear = layers_.linear_backward(product, flat, m);
  EXPECT_EQ(linear.x, flat);
  EXPECT_EQ(linear.w, Values(matrix));
  EXPECT_EQ(linear.bias, Values({7}));
}

TEST_F(EmptyBatch, PackedWeightsToo) {
  Backend& backend = layers_.backend();
  const auto packed = [&](const Shape& shape) {
    return backend.make_weight(quantize(uniform(shape, 1).view(), parse_scheme("linear"), "w"));
  };
  EXPECT_EQ(testing::linear(backend, Values({0, 5}), *packed({7, 5}), Values({7})), Values({0, 7}));
  EXPECT_EQ(testing::conv2d(backend, Values({0, 5, 4, 3}), *packed({6, 3, 3, 3}), Values({6}), {3, 1, 1}),
            Values({0, 5, 4, 6}));
}

TEST_F(EmptyBatch, LayersWithoutWeights) {
  const Values image({0, 13, 13, 3}), flat({0, 507});
  const Window window = {3, 2, 0};
  const Values pooled({0, 6, 6, 3});
  EXPECT_EQ(layers_.max_pool2d(image, window).y, pooled);
  EXPECT_EQ(layers_.max_pool2d_backward(pooled, {}, image.shape, window), image);
  EXPECT_EQ(layers_.adaptive_average_pool2d(image, 6, 6), pooled);
  EXPECT_EQ(layers_.adaptive_average_pool2d_backward(pooled, image.shape), image);
  EXPECT_EQ(layers_.flatten(image), flat);
  EXPECT_EQ(layers_.flatten_backward(flat, image.shape), image);
  EXPECT_EQ(layers_.relu(flat), flat);
  EXPECT_EQ(layers_.relu_backward(flat, flat), flat);
  EXPECT_EQ(layers_.dropout(flat, 0.5F, {}), flat);
  EXPECT_EQ(layers_.dropout_backward(flat, 0.5F, {}), flat);
  const auto loss = layers_.cross_entropy(Values({0, 10}), {});
  EXPECT_EQ(loss.losses, Values({0}));
  EXPECT_EQ(loss.dlogits, Values({0, 10}));
}

}  // namespace
}  // namespace nibblenet
