#include "layers/network/onnx.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include "tests/layers/network/onnx_reader.h"
#include "tests/support/golden.h"
#include "tests/support/methods.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// Runs the operators by which weights are decoded, as ONNX defines them.
class WeightEvaluator {
 public:
  explicit WeightEvaluator(OnnxModel model) : values_(std::move(model.tensors)) {
    static const std::set<std::string> network = {"Conv", "Gemm", "Relu", "MaxPool", "MatMul", "Flatten"};
    for (const OnnxNode& node : model.nodes) {
      if (network.contains(node.op)) continue;
      EXPECT_TRUE(values_.emplace(node.output, run(node)).second) << node.output;
    }
  }
  const OnnxTensor& at(const std::string& name) const { return values_.at(name); }

 private:
  OnnxTensor run(const OnnxNode& node) const {
    std::vector<OnnxTensor> in;
    for (const std::string& name : node.inputs) in.push_back(values_.at(name));
    if (node.op == "Cast") {
      in[0].type = node.attributes.at("to").at(0);
      return in[0];
    }
    if (node.op == "Reshape") {
      in[0].sizes.assign(in[1].values.begin(), in[1].values.end());
      EXPECT_EQ(static_cast<size_t>(onnx_elements(in[0].sizes)), in[0].values.size()) << node.output;
      return in[0];
    }
    if (node.op == "Gather") return gathered(in[0], in[1], node.attributes.at("axis").at(0));
    if (node.op == "DequantizeLinear") return dequantized(node, in);
    EXPECT_TRUE(node.op == "Mul" || node.op == "Div") << node.op;
    return elementwise(in[0], in[1], node.op == "Mul");
  }

  static OnnxTensor gathered(const OnnxTensor& data, const OnnxTensor& indices, int64_t axis) {
    EXPECT_TRUE(indices.type == 6 || indices.type == 7) << indices.type;
    const auto a = data.sizes.begin() + axis;
    const int64_t outer = onnx_elements({data.sizes.begin(), a}), inner = onnx_elements({a + 1, data.sizes.end()});
    OnnxTensor out{.type = data.type, .sizes = {data.sizes.begin(), a}, .values = {}};
    out.sizes.insert(out.sizes.end(), indices.sizes.begin(), indices.sizes.end());
    out.sizes.insert(out.sizes.end(), a + 1, data.sizes.end());
    for (int64_t o = 0; o < outer; ++o)
      for (const float index : indices.values)
        for (int64_t i = 0; i < inner; ++i)
          out.values.push_back(data.values.at(static_cast<size_t>((o * *a + static_cast<int64_t>(index)) * inner + i)));
    return out;
  }

  /// Sizes of `b` are those of `a`, or 1, and fewer at most in front.
  static OnnxTensor elementwise(const OnnxTensor& a, const OnnxTensor& b, bool multiplies) {
    OnnxTensor out = a;
    std::vector<int64_t> sizes(a.sizes.size() - b.sizes.size(), 1);
    sizes.insert(sizes.end(), b.sizes.begin(), b.sizes.end());
    for (size_t i = 0; i < a.values.size(); ++i) {
      auto rest = static_cast<int64_t>(i);
      int64_t at = 0, stride = 1;
      for (size_t d = sizes.size(); d-- > 0; rest /= a.sizes[d], stride *= sizes[d])
        at += (sizes[d] == 1 ? 0 : rest % a.sizes[d]) * stride;
      const float factor = b.values.at(static_cast<size_t>(at));
      out.values[i] = multiplies ? a.values[i] * factor : a.values[i] / factor;
    }
    return out;
  }

  static OnnxTensor dequantized(const OnnxNode& node, const std::vector<OnnxTensor>& in) {
    const OnnxTensor &codes = in[0], &scales = in[1];
    const int64_t axis = node.attributes.at("axis").at(0), columns = codes.sizes.at(1);
    EXPECT_EQ(codes.sizes.size(), 2U);
    EXPECT_EQ(scales.type, 1);
    EXPECT_EQ(scales.sizes.at(0), codes.sizes[0]);
    const bool has_blocks = node.attributes.contains("block_size");
    EXPECT_EQ(axis, has_blocks ? 1 : 0);
    EXPECT_EQ(scales.sizes.size(), has_blocks ? 2U : 1U);
    const int64_t blocks = has_blocks ? scales.sizes[1] : 1;
    const int64_t block = has_blocks ? node.attributes.at("block_size").at(0) : columns;
    EXPECT_EQ((columns + block - 1) / block, blocks);
    if (in.size() > 2) {
      EXPECT_EQ(in[2].type, codes.type);
      EXPECT_EQ(in[2].sizes, scales.sizes);
    }
    OnnxTensor out{.type = 1, .sizes = codes.sizes, .values = codes.values};
    for (size_t i = 0; i < out.values.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / columns, column = static_cast<int64_t>(i) % columns;
      const auto group = static_cast<size_t>(row * blocks + column / block);
      const float zero_point = in.size() > 2 ? in[2].values.at(group) : 0.0F;
      out.values[i] = (codes.values[i] - zero_point) * scales.values.at(group);
    }
    return out;
  }

  std::map<std::string, OnnxTensor> values_;
};

class OnnxTest : public ::testing::Test {
 protected:
  OnnxModel exported(const StateDict& dict, int image_size = 64) {
    layers_ = save_onnx(path(), dict, image_size);
    std::ifstream file(path(), std::ios::binary);
    return read_onnx(std::string(std::istreambuf_iterator<char>(file), {}));
  }
  std::filesystem::path path() const { return folder_.path() / "model.onnx"; }

  /// The graph computes the bits of every parameter.
  void expect_bits(const StateDict& dict) {
    const WeightEvaluator graph(exported(dict));
    for (const Parameter& parameter : dict.parameters) {
      const Tensor<float> expected = parameter.dequantized();
      const OnnxTensor& actual = graph.at(parameter.name);
      const auto sizes = parameter.shape().sizes();
      EXPECT_EQ(actual.type, 1) << parameter.name;
      EXPECT_EQ(actual.sizes, std::vector<int64_t>(sizes.begin(), sizes.end())) << parameter.name;
      ASSERT_EQ(actual.values.size(), static_cast<size_t>(expected.elements()));
      EXPECT_EQ(std::memcmp(actual.values.data(), expected.data(), actual.values.size() * sizeof(float)), 0)
          << parameter.name;
    }
  }

  TemporaryFolder folder_;
  std::vector<OnnxLayer> layers_;
};

/// A convolution and a matrix packed by `scheme`; other layers are float.
StateDict packed_in_part(const Scheme& scheme) {
  StateDict dict = small_alexnet(3);
  for (const char* name : {"features.3.weight", "classifier.4.weight"})
    dict.at(name).value = quantize(std::as_const(dict).at(name).values().view(), scheme, name);
  return dict;
}

constexpr std::array granularities = {"tensor",    "channel",  "row",      "block:5",  "block:7",     "block:64",
                                      "block:999", "tile:1x3", "tile:3x5", "tile:8x8", "tile:999x999"};

class OnnxMethods : public OnnxTest, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(OnnxMethods, HaveTheBitsOfOurDecoder) {
  const MethodTraits& traits = GetParam();
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
    Scheme scheme = default_scheme(traits.method, bits);
    if (traits.sorted) {
      EXPECT_THAT([&] { exported(packed_in_part(scheme)); }, ThrowsMessage<UsageError>(HasSubstr("magnitude-sorted")));
      EXPECT_FALSE(std::filesystem::exists(path()));
      continue;
    }
    const bool all = bits == traits.min_bits || bits == 4 || bits == traits.max_bits;
    for (const char* granularity : granularities) {
      if (!all && granularity != std::string_view("block:7")) continue;
      scheme.granularity = parse_granularity(granularity);
      scheme.scale = scheme.scale == ScaleType::f16 ? ScaleType::f32 : ScaleType::f16;
      SCOPED_TRACE(to_string(scheme));
      expect_bits(packed_in_part(scheme));
      const std::string stored = fmt::format("{}INT{}", traits.method == Method::linear ? "" : "U", bits > 4 ? 8 : 4);
      EXPECT_THAT(layers_.at(1).stored_as, ::testing::StartsWith(stored));
      EXPECT_EQ(layers_.at(0).stored_as, "FLOAT");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, OnnxMethods, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& method) { return identifier(method.param.name); });

TEST_F(OnnxTest, TrellisValuesAreIntegersWithTheBitsOfOurDecoder) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis)) {
    SCOPED_TRACE(to_string(scheme));
    expect_bits(packed_in_part(scheme));
    EXPECT_THAT(layers_.at(1).stored_as, ::testing::StartsWith("INT8"));
  }
}

TEST_F(OnnxTest, ZeroPointsAndSignsHaveTheBitsOfOurDecoder) {
  for (const int bits : {4, 7})
    for (const char* granularity : granularities)
      for (const char* options : {"zero-point", "f16:zero-point", "signed"}) {
        const std::string scheme = fmt::format("linear:{}:{}:{}", bits, granularity, options);
        SCOPED_TRACE(scheme);
        expect_bits(packed_in_part(parse_scheme(scheme)));
      }
}

/// Linear codes leave one code unused, which decodes to 0 and is no INT4 of its own.
TEST_F(OnnxTest, CodesThatNoQuantizerChoosesDecodeTheSame) {
  for (const char* scheme : {"linear:4:channel", "linear:3:block:7", "linear:8:tensor", "dynamic-tree:4:row"}) {
    StateDict dict = packed_in_part(parse_scheme(scheme));
    std::get<PackedTensor>(dict.at("classifier.4.weight").value).codes.at(0) = 0xFF;
    SCOPED_TRACE(scheme);
    expect_bits(dict);
  }
}

/// The operators of the network, with those that decode weights left out.
std::vector<std::string> operators(const OnnxModel& model) {
  std::vector<std::string> names;
  for (const OnnxNode& node : model.nodes)
    if (std::ranges::none_of(std::array{"Cast", "Div", "Gather", "Reshape", "Mul", "DequantizeLinear"},
                             [&](const char* op) { return node.op == op; }))
      names.push_back(node.op);
  return names;
}

TEST_F(OnnxTest, TheGraphIsTheNetworksTable) {
  StateDict dict = small_alexnet(1);
  dict.metadata["classes"] = R"(["a","b"])";
  pack_all(dict, parse_scheme("nf4:4:block:16:f16"));
  const OnnxModel model = exported(dict, 224);
  EXPECT_EQ(model.ir_version, 10);
  EXPECT_EQ(model.opset, 21);
  EXPECT_THAT(model.ends.at("images"), ElementsAre(-1, 3, 224, 224));
  EXPECT_THAT(model.ends.at("logits"), ElementsAre(-1, 10));
  EXPECT_EQ(model.metadata.at("classes"), R"(["a","b"])");
  EXPECT_EQ(model.metadata.at("image_size"), "224");
  EXPECT_EQ(model.metadata.at("mean"), "0.485 0.456 0.406");
  EXPECT_EQ(model.metadata.at("scheme:features.0.weight"), "nf4:4:block:16:f16");
  EXPECT_THAT(operators(model),
              ElementsAre("Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Conv", "Relu", "Conv", "Relu", "Conv",
                          "Relu", "MaxPool", "Flatten", "Gemm", "Relu", "Gemm", "Relu", "Gemm"));
  const auto first = std::ranges::find(model.nodes, "Conv", &OnnxNode::op);
  EXPECT_THAT(first->inputs, ElementsAre("images", "features.0.weight", "features.0.bias"));
  EXPECT_THAT(first->attributes.at("kernel_shape"), ElementsAre(11, 11));
  EXPECT_THAT(first->attributes.at("strides"), ElementsAre(4, 4));
  EXPECT_THAT(first->attributes.at("pads"), ElementsAre(2, 2, 2, 2));
  EXPECT_EQ(model.nodes.back().output, "logits");
}

/// Every input of a node is a constant, the network's input, or the output of a node in front.
TEST_F(OnnxTest, NodesAreInTheOrderOfTheirExecution) {
  StateDict dict = small_vgg16(1);
  pack_all(dict, parse_scheme("linear:4:tile:3x2:f16:zero-point"));
  const OnnxModel model = exported(dict, 32);
  std::set<std::string> known = {"images"};
  for (const auto& [name, tensor] : model.tensors) known.insert(name);
  for (const OnnxNode& node : model.nodes) {
    for (const std::string& input : node.inputs) EXPECT_TRUE(known.contains(input)) << node.output << ": " << input;
    EXPECT_TRUE(known.insert(node.output).second) << node.output;
  }
  EXPECT_TRUE(known.contains("logits"));
}

/// At 64 pixels AlexNet's last pooling gives one pixel, which the adaptive pooling repeats; at 256
/// it averages 7 × 7 pixels to 6 × 6.
TEST_F(OnnxTest, AdaptivePoolingIsTwoProductsWhereItDoesSomething) {
  const StateDict dict = small_alexnet(1);
  for (const int size : {64, 256}) {
    const OnnxModel model = exported(dict, size);
    const OnnxTensor& rows = model.tensors.at("pooling.rows");
    ASSERT_THAT(rows.sizes, ElementsAre(6, size == 64 ? 1 : 7));
    const auto inputs = static_cast<size_t>(rows.sizes[1]);
    for (size_t q = 0; q < 6; ++q) {
      float sum = 0;
      for (size_t p = 0; p < inputs; ++p) {
        sum += rows.values[q * inputs + p];
        EXPECT_EQ(rows.values[q * inputs + p], model.tensors.at("pooling.columns").values.at(p * 6 + q));
      }
      EXPECT_EQ(sum, 1.0F);
    }
    EXPECT_EQ(std::ranges::count(operators(model), "MatMul"), 2);
  }
}

/// What `pack --bits 4` and `--bits 8` make: 2 % more than the ledger at most. The graph is a
/// matter of the number of layers.
TEST_F(OnnxTest, FilesAreAsSmallAsTheLedger) {
  for (const int bits : {4, 8}) {
    StateDict dict = even_alexnet(1);
    for (Parameter& parameter : dict.parameters)
      if (parameter.is_weight())
        parameter.value = quantize(std::as_const(parameter).values().view(),
                                   default_scheme_of(measured_schemes, parameter.shape(), bits), parameter.name);
    exported(dict);
    int64_t resident = 0, onnx = 0;
    for (const OnnxLayer& layer : layers_) {
      resident += layer.resident;
      onnx += layer.onnx;
    }
    EXPECT_LE(static_cast<double>(onnx), 1.02 * static_cast<double>(resident)) << bits;
    EXPECT_LT(static_cast<int64_t>(std::filesystem::file_size(path())) - onnx, 16'384) << bits;
  }
}

TEST_F(OnnxTest, ImagesThatAreTooSmallAreRefused) {
  EXPECT_THROW(exported(small_alexnet(1), 20), ShapeError);
  EXPECT_FALSE(std::filesystem::exists(path()));
}

}  // namespace
}  // namespace nibblenet
