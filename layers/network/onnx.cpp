#include "layers/network/onnx.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <span>

#include "engine/io/onnx_graph.h"
#include "engine/io/preprocess.h"
#include "engine/quant/bits.h"
#include "engine/quant/hadamard.h"
#include "engine/quant/size.h"
#include "engine/quant/trellis.h"
#include "kernels/shapes.h"

namespace nibblenet {
namespace {

constexpr int64_t as_float = static_cast<int64_t>(OnnxType::float32);

template <class T>
std::vector<uint8_t> raw_bytes(const std::vector<T>& values) {
  const auto bytes = bytes_of(std::span<const T>(values));
  return {bytes.begin(), bytes.end()};
}

std::vector<int64_t> sizes_of(const Shape& shape) { return {shape.sizes().begin(), shape.sizes().end()}; }

/// Writes one packed weight as constants and nodes. It is seen as a matrix whose rows are cut into
/// runs of columns that share a scale. Scales form a matrix of rows × runs; tiles, which share
/// scales between rows too, first get a row of scales for each row.
class PackedWeight {
 public:
  PackedWeight(OnnxGraph& graph, const std::string& name, const PackedTensor& packed)
      : graph_(graph), name_(name), packed_(packed), codebook_(codebook_of(packed)) {
    const GroupMap map = make_group_map(packed.scheme.granularity, packed.shape);
    const int64_t elements = packed.shape.elements();
    columns_ = map.channel_elements;
    switch (map.kind) {
      case Granularity::Kind::tensor:
        columns_ = elements;
        break;
      case Granularity::Kind::channel:
        break;
      case Granularity::Kind::row:
        columns_ = map.last;
        break;
      case Granularity::Kind::block:
        run_ = map.block;
        break;
      case Granularity::Kind::tile:
        columns_ = map.last;
        run_ = map.tile_columns;
        tile_rows_ = map.block;
        plane_rows_ = map.matrix ? packed.shape[0] : packed.shape[2];
        break;
      case Granularity::Kind::sorted:
        fail<UsageError>(
            "{} has the scheme {}: ONNX cannot express magnitude-sorted blocks; export it to safetensors or pth, or "
            "pack the float model by another method",
            name, to_string(packed.scheme));
    }
    run_ = std::min(run_ == 0 ? columns_ : run_, columns_);
    rows_ = elements / columns_;
    runs_ = (columns_ + run_ - 1) / run_;
    tile_rows_ = std::min(tile_rows_, plane_rows_);
  }

  /// "INT4": the type of the codes, and whether they stand for the values of a codebook.
  std::string stored_as() const {
    return fmt::format("{}{}{}", is_integer() ? "INT" : "UINT", wide() ? 8 : 4, is_linear() ? "" : " + codebook");
  }

  /// Adds all nodes; the last one's output has the weight's name.
  void add() {
    const bool reshapes = sizes_of(packed_.shape) != code_sizes();
    const std::string matrix = reshapes ? name_ + ".matrix" : name_;
    const std::string values = is_linear() ? add_linear(matrix) : add_codebook(matrix);
    if (reshapes) graph_.add_node("Reshape", {values, add_sizes(".shape", sizes_of(packed_.shape))}, name_);
  }

 private:
  bool wide() const { return packed_.scheme.bits > 4 || packed_.scheme.is_trellis(); }
  /// Whether weights are (number - zero point) · step; else numbers are places in a codebook.
  bool is_linear() const {
    return packed_.scheme.is_trellis() || (packed_.scheme.method == Method::linear && packed_.codebook.empty());
  }
  /// Whether the stored numbers are integers around 0.
  bool is_integer() const { return is_linear() && !packed_.scheme.zero_point; }

  std::string add_sizes(const std::string& suffix, const std::vector<int64_t>& sizes) {
    return graph_.add_constant(name_ + suffix, OnnxType::int64, {static_cast<int64_t>(sizes.size())}, raw_bytes(sizes));
  }

  /// The stored numbers of type INT4, UINT4, INT8 or UINT8: those of `count` codes that
  /// `number(index)` gives.
  template <class Number>
  std::vector<uint8_t> stored(int64_t count, Number number) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(wide() ? count : (count + 1) / 2));
    for (int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<uint8_t>(number(i));
      if (wide())
        bytes[static_cast<size_t>(i)] = value;
      else
        bytes[static_cast<size_t>(i / 2)] |= static_cast<uint8_t>((value & 15) << (i % 2 * 4));
    }
    return bytes;
  }

  /// Whether each run is a row of its own: only runs of equal length can be.
  bool cuts_runs() const { return !is_linear() && runs_ > 1 && columns_ % run_ == 0; }
  std::vector<int64_t> code_sizes() const {
    return cuts_runs() ? std::vector{rows_, runs_, run_} : std::vector{rows_, columns_};
  }
  std::string add_codes() {
    const int64_t inner = packed_.shape.inner_elements(), stride = packed_.code_stride();
    auto bytes = stored(packed_.shape.elements(), [&](int64_t i) {
      if (packed_.scheme.is_trellis())
        return trellis_value_at(packed_.codes.data(), trellis_layout(packed_), i / inner, i % inner);
      const uint32_t code = read_field(packed_.codes.data() + i / inner * stride, i % inner, packed_.scheme.bits);
      return is_integer() ? static_cast<int>(codebook_.values[code]) : static_cast<int>(code);
    });
    return graph_.add_constant(name_ + ".codes", code_type(), code_sizes(), std::move(bytes));
  }

  OnnxType code_type() const {
    if (is_integer()) return wide() ? OnnxType::int8 : OnnxType::int4;
    return wide() ? OnnxType::uint8 : OnnxType::uint4;
  }

  bool shares_rows() const { return tile_rows_ > 1; }
  /// The sizes of scales and zero points in the file.
  std::vector<int64_t> group_sizes(const std::vector<int64_t>& wanted) const {
    if (!shares_rows()) return wanted;
    return {rows_ / plane_rows_, (plane_rows_ + tile_rows_ - 1) / tile_rows_, runs_};
  }
  /// Gives each row of the matrix its own row of `groups`, in the sizes `wanted`.
  std::string spread_over_rows(const std::string& groups, const std::vector<int64_t>& wanted) {
    if (!shares_rows()) return groups;
    if (tile_row_indices_.empty()) tile_row_indices_ = add_indices(".tile_rows", plane_rows_, tile_rows_);
    const std::string spread =
        graph_.add_node("Gather", {groups, tile_row_indices_}, groups + ".rows", {{.name = "axis", .values = {1}}});
    return graph_.add_node("Reshape", {spread, add_sizes(groups.substr(name_.size()) + ".shape", wanted)},
                           groups + ".matrix");
  }
  /// [count]: index / divisor.
  std::string add_indices(const std::string& suffix, int64_t count, int64_t divisor) {
    std::vector<int32_t> indices(static_cast<size_t>(count));
    for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int32_t>(static_cast<int64_t>(i) / divisor);
    return graph_.add_constant(name_ + suffix, OnnxType::int32, {count}, raw_bytes(indices));
  }

  /// Scale / scale_to of each row's runs. fp16 scales stay fp16 values in the file.
  std::string add_steps(const std::vector<int64_t>& wanted) {
    const std::vector<int64_t> sizes = group_sizes(wanted);
    if (packed_.scheme.scale == ScaleType::f16) {
      const std::string scales = graph_.add_constant(name_ + ".scales", OnnxType::float16, sizes, packed_.scales);
      const std::string in_float32 =
          graph_.add_node("Cast", {scales}, scales + ".float32", {{.name = "to", .values = {as_float}}});
      const std::string scale_to =
          graph_.add_constant(name_ + ".scale_to", OnnxType::float32, {}, raw_bytes<float>({codebook_.scale_to}));
      return spread_over_rows(graph_.add_node("Div", {in_float32, scale_to}, name_ + ".steps"), wanted);
    }
    const PackedView view = view_of(packed_, codebook_);
    std::vector<float> steps(static_cast<size_t>(view.groups.groups));
    for (size_t group = 0; group < steps.size(); ++group) steps[group] = view.step(static_cast<int64_t>(group));
    return spread_over_rows(graph_.add_constant(name_ + ".steps", OnnxType::float32, sizes, raw_bytes(steps)), wanted);
  }

  /// Zero points of the type of the codes. Operators that spread them know bytes, not 4-bit
  /// numbers.
  std::string add_zero_points(const std::vector<int64_t>& wanted) {
    if (shares_rows() && !wide()) {
      const std::string bytes =
          graph_.add_constant(name_ + ".zero_points", OnnxType::uint8, group_sizes(wanted), packed_.zero_points);
      return graph_.add_node("Cast", {spread_over_rows(bytes, wanted)}, name_ + ".zero_points.uint4",
                             {{.name = "to", .values = {static_cast<int64_t>(OnnxType::uint4)}}});
    }
    auto bytes = stored(static_cast<int64_t>(packed_.zero_points.size()),
                        [&](int64_t i) { return packed_.zero_points[static_cast<size_t>(i)]; });
    return spread_over_rows(
        graph_.add_constant(name_ + ".zero_points", code_type(), group_sizes(wanted), std::move(bytes)), wanted);
  }

  /// (code - zero point) · step: one operator.
  std::string add_linear(const std::string& output) {
    const bool has_runs = runs_ > 1;
    const std::vector<int64_t> wanted = has_runs ? std::vector{rows_, runs_} : std::vector{rows_};
    std::vector<std::string> inputs = {add_codes(), add_steps(wanted)};
    if (packed_.scheme.zero_point) inputs.push_back(add_zero_points(wanted));
    std::vector<OnnxAttribute> attributes = {{.name = "axis", .values = {has_runs ? 1 : 0}}};
    if (has_runs) attributes.push_back({.name = "block_size", .values = {run_}});
    return graph_.add_node("DequantizeLinear", inputs, output, attributes);
  }

  /// values[code] · step.
  std::string add_codebook(const std::string& output) {
    const std::vector<float> table(codebook_.values.begin(), codebook_.values.begin() + (1 << packed_.scheme.bits));
    const std::string codes = graph_.add_node("Cast", {add_codes()}, name_ + ".indices",
                                              {{.name = "to", .values = {static_cast<int64_t>(OnnxType::int32)}}});
    const std::string codebook = graph_.add_constant(name_ + ".codebook", OnnxType::float32,
                                                     {static_cast<int64_t>(table.size())}, raw_bytes(table));
    const std::string values =
        graph_.add_node("Gather", {codebook, codes}, name_ + ".values", {{.name = "axis", .values = {0}}});
    std::string steps = add_steps(cuts_runs() ? std::vector{rows_, runs_, int64_t{1}} : std::vector{rows_, runs_});
    if (runs_ > 1 && !cuts_runs())  // one step a column
      steps = graph_.add_node("Gather", {steps, add_indices(".runs", columns_, run_)}, name_ + ".steps.columns",
                              {{.name = "axis", .values = {1}}});
    return graph_.add_node("Mul", {values, steps}, output);
  }

  OnnxGraph& graph_;
  std::string name_;
  const PackedTensor& packed_;
  Codebook codebook_;
  int64_t rows_ = 0, columns_ = 0;  ///< of the matrix
  int64_t run_ = 0, runs_ = 1;      ///< columns that share a scale; scales a row
  int64_t tile_rows_ = 1;           ///< rows that share scales
  int64_t plane_rows_ = 1;          ///< rows from which tiles start anew
  std::string tile_row_indices_;
};

/// Adds a weight or a bias. Returns how it is stored.
std::string add_parameter(OnnxGraph& graph, const Parameter& parameter) {
  if (!parameter.packed()) {
    graph.add_view(parameter.name, OnnxType::float32, sizes_of(parameter.shape()),
                   bytes_of(parameter.values().view().span()));
    return "FLOAT";
  }
  PackedWeight weight(graph, parameter.name, parameter.packed_values());
  weight.add();
  return weight.stored_as();
}

int64_t resident_bytes(const Parameter& parameter) {
  if (parameter.packed()) return resident_size(parameter.packed_values()).total();
  return static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
}

/// Adaptive average pooling from P × P to Q × Q pixels as two matrix products, since ONNX has no
/// operator for it: A · x · Aᵀ, where row q of A averages the pixels of output q.
std::string add_adaptive_pooling(OnnxGraph& graph, const std::string& x, int64_t inputs, int64_t outputs) {
  std::vector<float> rows(static_cast<size_t>(outputs * inputs)), columns(rows.size());
  for (int64_t q = 0; q < outputs; ++q) {
    const PooledRange range(q, outputs, inputs);
    for (int64_t p = range.begin; p < range.end; ++p)
      rows[static_cast<size_t>(q * inputs + p)] = columns[static_cast<size_t>(p * outputs + q)] =
          1.0F / static_cast<float>(range.size());
  }
  const std::string a = graph.add_constant("pooling.rows", OnnxType::float32, {outputs, inputs}, raw_bytes(rows));
  const std::string b = graph.add_constant("pooling.columns", OnnxType::float32, {inputs, outputs}, raw_bytes(columns));
  return graph.add_node("MatMul", {graph.add_node("MatMul", {a, x}, "pooling.down"), b}, "pooling");
}

/// The Hadamard matrices of a graph, each once, by block: signs as INT8 behind DequantizeLinear.
class HadamardMatrices {
 public:
  explicit HadamardMatrices(OnnxGraph& graph) : graph_(graph) {}

  /// Adds nodes that rotate x, the inputs of a layer: [N, C, H, W], or [N, I] with `inputs` a
  /// channel. `shape` is that of channels-last images, or of x. Returns their output's name.
  std::string rotate(const std::string& x, int64_t block, int64_t inputs, const Shape& shape,
                     const std::string& layer) {
    const bool images = shape.rank() == 4;
    const int64_t channels = images ? shape[3] : shape[1] / inputs;
    const int64_t pixels = images ? shape[1] * shape[2] : inputs;
    const std::string blocks = reshape(x, {0, channels / block, block, pixels}, layer + ".blocks");
    const std::string turned = graph_.add_node("MatMul", {matrix(block), blocks}, layer + ".rotated_blocks");
    const std::vector<int64_t> sizes =
        images ? std::vector<int64_t>{0, channels, shape[1], shape[2]} : std::vector<int64_t>{0, shape[1]};
    return reshape(turned, sizes, layer + ".rotated");
  }

 private:
  /// Sizes of 0 are those of x.
  std::string reshape(const std::string& x, const std::vector<int64_t>& sizes, const std::string& output) {
    const std::string shape =
        graph_.add_constant(output + ".shape", OnnxType::int64, {static_cast<int64_t>(sizes.size())}, raw_bytes(sizes));
    return graph_.add_node("Reshape", {x, shape}, output);
  }

  const std::string& matrix(int64_t block) {
    std::string& name = names_[block];
    if (!name.empty()) return name;
    std::vector<int8_t> signs(static_cast<size_t>(block * block));
    for (size_t i = 0; i < signs.size(); ++i) {
      const uint64_t row = i / static_cast<uint64_t>(block), column = i % static_cast<uint64_t>(block);
      signs[i] = std::popcount(row & column) % 2 == 0 ? int8_t{1} : int8_t{-1};
    }
    const std::string stored = fmt::format("hadamard.{}", block);
    const std::string constant =
        graph_.add_constant(stored + ".signs", OnnxType::int8, {block, block}, raw_bytes(signs));
    const std::string factor = graph_.add_constant(stored + ".factor", OnnxType::float32, {},
                                                   raw_bytes<float>({1.0F / std::sqrt(static_cast<float>(block))}));
    return name = graph_.add_node("DequantizeLinear", {constant, factor}, stored);
  }

  OnnxGraph& graph_;
  std::map<int64_t, std::string> names_;
};

/// Adds the nodes of one layer behind `x`, whose shape is that of channels-last images. Returns the
/// name of its output.
std::string add_layer(OnnxGraph& graph, const LayerSpec& layer, const std::string& name, const std::string& x,
                      const Shape& shape) {
  const Window& window = layer.window;
  const OnnxAttribute kernel{.name = "kernel_shape", .values = {window.size, window.size}, .is_list = true};
  const OnnxAttribute strides{.name = "strides", .values = {window.stride, window.stride}, .is_list = true};
  const OnnxAttribute pads{.name = "pads", .values = std::vector<int64_t>(4, window.padding), .is_list = true};
  const std::string output = layer.epilogue == Epilogue::relu ? name + ".sums" : name;
  const std::vector<std::string> operands = {x, layer.name + ".weight", layer.name + ".bias"};
  switch (layer.kind) {
    case LayerKind::conv2d:
      graph.add_node("Conv", operands, output, {kernel, strides, pads});
      break;
    case LayerKind::linear:
      graph.add_node("Gemm", operands, output, {{.name = "transB", .values = {1}}});
      break;
    case LayerKind::max_pool2d:
      return graph.add_node("MaxPool", {x}, name, {kernel, strides, pads});
    case LayerKind::adaptive_average_pool2d:
      return shape[1] == layer.output_size ? x : add_adaptive_pooling(graph, x, shape[1], layer.output_size);
    case LayerKind::flatten:
      return graph.add_node("Flatten", {x}, name, {{.name = "axis", .values = {1}}});
    case LayerKind::dropout:
      return x;
  }
  return layer.epilogue == Epilogue::relu ? graph.add_node("Relu", {output}, name) : name;
}

/// What a reader needs to prepare images and to name classes, and the schemes.
std::map<std::string, std::string> metadata_of(const StateDict& parameters, const Preprocess& preprocess) {
  std::map<std::string, std::string> metadata = {
      {image_size_key, fmt::format("{}", preprocess.crop)},
      {"resize", fmt::format("{}", preprocess.resize)},
      {"mean", fmt::format("{}", fmt::join(preprocess.mean, " "))},
      {"deviation", fmt::format("{}", fmt::join(preprocess.deviation, " "))}};
  if (const auto classes = parameters.metadata.find(class_names_key); classes != parameters.metadata.end())
    metadata[class_names_key] = classes->second;
  for (const Parameter& parameter : parameters.parameters)
    if (parameter.packed()) metadata["scheme:" + parameter.name] = to_string(parameter.packed_values().scheme);
  return metadata;
}

}  // namespace

std::vector<OnnxLayer> save_onnx(const std::filesystem::path& path, const StateDict& parameters, int image_size) {
  const std::vector<LayerSpec> layers = layers_of(parameters);
  const Preprocess preprocess = Preprocess::for_image_size(image_size);
  OnnxGraph graph;
  std::vector<OnnxLayer> rows;
  const OnnxValue input{.name = "images",
                        .sizes = {3, image_size, image_size},
                        .text = fmt::format("RGB, (x / 255 - mean) / deviation: mean {}, deviation {}",
                                            fmt::join(preprocess.mean, " "), fmt::join(preprocess.deviation, " "))};
  const OnnxValue output{.name = "logits", .sizes = {layers.back().weight[0]}, .text = ""};
  std::string x = input.name;
  Shape shape{1, image_size, image_size, 3};
  HadamardMatrices hadamard(graph);
  for (const LayerSpec& layer : layers) {
    const Shape next = layer.output_shape(shape);  // first: it refuses sizes that do not fit
    if (layer.has_parameters()) {
      const int64_t before = graph.constant_bytes();
      const Parameter &weight = parameters.at(layer.name + ".weight"), &bias = parameters.at(layer.name + ".bias");
      rows.push_back({.name = layer.name,
                      .scheme = weight.packed() ? to_string(weight.packed_values().scheme) : "float32",
                      .stored_as = add_parameter(graph, weight),
                      .weights = weight.shape().elements(),
                      .resident = resident_bytes(weight) + resident_bytes(bias)});
      add_parameter(graph, bias);
      rows.back().onnx = graph.constant_bytes() - before;
    }
    const bool last = &layer == &layers.back();
    const std::string name = last                     ? output.name
                             : layer.has_parameters() ? layer.name
                                                      : fmt::format("layer.{}", &layer - layers.data());
    if (layer.has_parameters()) {
      const Parameter& weight = parameters.at(layer.name + ".weight");
      if (weight.packed())
        if (const Rotation rotation = rotation_of_inputs(weight.packed_values().scheme, weight.shape()))
          x = hadamard.rotate(x, rotation.block, rotation.stride, shape, layer.name);
    }
    x = add_layer(graph, layer, name, x, shape);
    shape = next;
  }
  graph.write(path, input, output, metadata_of(parameters, preprocess));
  return rows;
}

}  // namespace nibblenet
