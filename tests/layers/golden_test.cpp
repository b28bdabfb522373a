#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "tests/layers/host_layers.h"

namespace nibblenet {
namespace {

using nlohmann::json;
using testing::from;
using testing::golden;
using testing::golden_folder;
using testing::HostLayers;
using testing::on;
using testing::relative_error;
using testing::Values;

/// Float32 sums of some hundred products, in another order than PyTorch's.
constexpr double tolerance = 1e-5;

/// [N, C, H, W] as [N, H, W, C], and back: rows and columns of an image's matrix change places.
Values transposed(const Values& values, const Shape& shape, int64_t rows, int64_t columns) {
  Values result(shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    const int64_t image = i / (rows * columns), row = i / columns % rows, column = i % columns;
    result.data[static_cast<size_t>((image * columns + column) * rows + row)] = values.data[static_cast<size_t>(i)];
  }
  return result;
}
Values to_nhwc(const Values& x) {
  const Shape& s = x.shape;
  return transposed(x, {s[0], s[2], s[3], s[1]}, s[1], s[2] * s[3]);
}
Values to_nchw(const Values& x) {
  const Shape& s = x.shape;
  return transposed(x, {s[0], s[3], s[1], s[2]}, s[1] * s[2], s[3]);
}

class Golden : public ::testing::Test {
 protected:
  /// Runs `check` for every case of a layer.
  void for_each(const std::string& layer, const std::function<void(const json&)>& check) {
    int cases = 0;
    for (const json& description : json::parse(std::ifstream(golden_folder() / "layers.json"))) {
      if (description.at("layer") != layer) continue;
      name_ = description.at("name");
      SCOPED_TRACE(name_);
      check(description);
      ++cases;
    }
    EXPECT_GT(cases, 0) << "no case of " << layer;
  }

  /// A tensor of the case, as PyTorch has it.
  Values plain(const std::string& part) const {
    const Tensor<float> tensor = golden(file_, name_ + "/" + part);
    Values values(tensor.shape());
    std::copy_n(tensor.data(), values.data.size(), values.data.begin());
    return values;
  }
  /// An activation of the case, channels last.
  Values image(const std::string& part) const { return to_nhwc(plain(part)); }

  void expect_close(const Values& actual, const std::string& part) const {
    EXPECT_LE(relative_error(actual.view(), plain(part).view()), tolerance) << part;
  }
  void expect_close_image(const Values& actual, const std::string& part) const { expect_close(to_nchw(actual), part); }

  HostLayers layers_;

 private:
  SafetensorsFile file_{golden_folder() / "layers.safetensors"};
  std::string name_;
};

TEST_F(Golden, Conv2d) {
  for_each("conv2d", [&](const json& c) {
    const Values x = image("x"), w = plain("w");
    const Window window = {w.shape[2], c.at("stride"), c.at("padding")};
    expect_close_image(layers_.conv2d(x, w, plain("b"), window), "y");
    const auto gradients = layers_.conv2d_backward(image("dy"), x, w, window);
    expect_close_image(gradients.x, "dx");
    expect_close(gradients.w, "dw");
    expect_close(gradients.bias, "db");
  });
}

TEST_F(Golden, Linear) {
  for_each("linear", [&](const json&) {
    const Values x = plain("x"), w = plain("w");
    expect_close(layers_.linear(x, w, plain("b")), "y");
    const auto gradients = layers_.linear_backward(plain("dy"), x, w);
    expect_close(gradients.x, "dx");
    expect_close(gradients.w, "dw");
    expect_close(gradients.bias, "db");
  });
}

TEST_F(Golden, FusedReluIsReluOfTheResult) {
  for_each("linear", [&](const json&) {
    const Values x = plain("x"), w = plain("w"), bias = plain("b");
    EXPECT_EQ(layers_.linear(x, w, bias, Epilogue::relu), layers_.relu(layers_.linear(x, w, bias)));
  });
  for_each("conv2d", [&](const json& c) {
    const Values x = image("x"), w = plain("w"), bias = plain("b");
    const Window window = {w.shape[2], c.at("stride"), c.at("padding")};
    EXPECT_EQ(layers_.conv2d(x, w, bias, window, Epilogue::relu), layers_.relu(layers_.conv2d(x, w, bias, window)));
  });
}

TEST_F(Golden, MaxPool2d) {
  for_each("maxpool2d", [&](const json& c) {
    const Values x = image("x");
    const Window window = {c.at("kernel"), c.at("stride"), c.value("padding", 0)};
    const auto pooled = layers_.max_pool2d(x, window);
    EXPECT_EQ(to_nchw(pooled.y), plain("y"));
    EXPECT_EQ(layers_.max_pool2d_inference(x, window), pooled.y);
    expect_close_image(layers_.max_pool2d_backward(image("dy"), pooled.argmax, x.shape, window), "dx");
  });
}

TEST_F(Golden, AdaptiveAveragePool2d) {
  for_each("adaptive_avgpool2d", [&](const json& c) {
    const Values x = image("x");
    expect_close_image(layers_.adaptive_average_pool2d(x, c.at("output").at(0), c.at("output").at(1)), "y");
    expect_close_image(layers_.adaptive_average_pool2d_backward(image("dy"), x.shape), "dx");
  });
}

TEST_F(Golden, Relu) {
  for_each("relu", [&](const json&) {
    const Values y = layers_.relu(plain("x"));
    EXPECT_EQ(y, plain("y"));
    EXPECT_EQ(layers_.relu_backward(plain("dy"), y), plain("dx"));
  });
}

TEST_F(Golden, CrossEntropy) {
  for_each("cross_entropy", [&](const json& c) {
    ASSERT_EQ(c.at("reduction"), "mean");
    std::vector<int32_t> labels;
    for (const float label : plain("target").data) labels.push_back(static_cast<int32_t>(label));
    const auto result = layers_.cross_entropy(plain("x"), labels);
    const std::vector<float>& losses = result.losses.data;
    const double mean = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
    const double expected = static_cast<double>(plain("loss").data.at(0));
    EXPECT_NEAR(mean, expected, tolerance * expected);
    expect_close(result.dlogits, "dx");
  });
}

TEST_F(Golden, Sgd) {
  for_each("sgd", [&](const json& c) {
    const SgdParameters parameters = {
        .learning_rate = c.at("lr"), .momentum = c.at("momentum"), .weight_decay = c.at("weight_decay")};
    Backend& backend = layers_.backend();
    Tensor<float> w = on(backend, plain("p0"));
    Tensor<float> v = on(backend, Values(w.shape()));
    for (int step = 0; step < c.at("steps"); ++step) {
      const std::string prefix = fmt::format("step{}/", step);
      const Tensor<float> dw = on(backend, plain(prefix + "grad"));
      backend.training().sgd_step(w.view(), v.view(), dw.view(), parameters);
      expect_close(from(backend, w.view()), prefix + "p");
      expect_close(from(backend, v.view()), prefix + "v");
    }
  });
}

TEST_F(Golden, NoLayerIsLeftOut) {
  const std::vector<std::string> covered = {"conv2d", "linear",        "maxpool2d", "adaptive_avgpool2d",
                                            "relu",   "cross_entropy", "sgd",       "preprocess" /* engine/io */};
  for (const json& description : json::parse(std::ifstream(golden_folder() / "layers.json")))
    EXPECT_EQ(std::ranges::count(covered, description.at("layer").get<std::string>()), 1) << description;
}

}  // namespace
}  // namespace nibblenet
