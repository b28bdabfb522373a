#pragma once

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "kernels/activations.h"
#include "kernels/shapes.h"
#include "tests/support/golden.h"

// The table of tests/data/routes.txt: which kernel runs what, of every layer of AlexNet at several
// batches and schemes.

namespace nibblenet::testing {

/// A layer with a weight, at 224 x 224 pixels.
struct RouteLayer {
  std::string name;
  Shape weight;
  int64_t size = 1;  ///< x is [N, size, size, C]; 1: a linear layer, [N, C]
  Window window = {};
  bool pooled = false;     ///< max pooling of 3 x 3 at stride 2 follows
  bool flattened = false;  ///< and the flatten, with nothing between

  bool linear() const { return weight.rank() == 2; }
  bool last() const { return name == "classifier.6"; }
  int64_t outputs() const { return linear() ? 1 : window.output(size); }
};
inline const Window route_pool = {.size = 3, .stride = 2};

inline const std::vector<RouteLayer>& route_layers() {
  static const std::vector<RouteLayer> layers = {
      {"features.0", {64, 3, 11, 11}, 224, {11, 4, 2}, true},
      {"features.3", {192, 64, 5, 5}, 27, {5, 1, 2}, true},
      {"features.6", {384, 192, 3, 3}, 13, {3, 1, 1}},
      {"features.8", {256, 384, 3, 3}, 13, {3, 1, 1}},
      {"features.10", {256, 256, 3, 3}, 13, {3, 1, 1}, true, true},
      {"classifier.1", {4096, 9216}},
      {"classifier.4", {1024, 4096}},
      {"classifier.6", {10, 1024}},
  };
  return layers;
}

/// What a column asks for.
enum class RouteColumn : uint8_t { forward, pooled, folded, data_gradient, weight_gradient, step };

/// One cell: a product, and where it runs. `scheme` is one of packed weights, or "float16",
/// "float32", or "trained": a weight that trains in float16.
struct RouteQuestion {
  RouteColumn column;
  Precision precision;
  int architecture;  ///< 80, 89, 90
  const RouteLayer& layer;
  std::string scheme;
  int64_t batch;
};

/// Whether a network asks this question: float16 activations take packed, float16 and trained
/// weights, float32 ones packed and float32 weights.
inline bool exists(const RouteQuestion& q) {
  const bool forward =
      q.column == RouteColumn::forward || q.column == RouteColumn::pooled || q.column == RouteColumn::folded;
  if (!forward) return q.scheme == (q.precision == Precision::float16 ? "trained" : "float32");
  if (q.column == RouteColumn::pooled && !q.layer.pooled) return false;
  if (q.column == RouteColumn::folded) return q.layer.name == "features.0" && q.scheme == "float32";
  return q.precision == Precision::float16 ? q.scheme != "float32" : q.scheme != "float16" && q.scheme != "trained";
}

/// Schemes of packed weights: those that `pack --bits` takes from 2 to 8 bits, with and without
/// calibration, and others of each layout of scales.
inline std::vector<std::string> packed_route_schemes() {
  return {"linear:2:block:16:f16:zero-point",
          "linear:3:block:16:f16:zero-point",
          "nf4:4:block:16:f16",
          "linear:5:block:16:f16",
          "kmeans:3:block:128:f16",
          "linear:2:channel:zero-point",
          "linear:3:channel:zero-point",
          "nf4:4:channel",
          "kmeans:2:channel",
          "kmeans:3:channel",
          "kmeans:4:channel",
          "linear:5:channel",
          "linear:6:channel",
          "linear:7:channel",
          "linear:8:channel",
          "linear:4:tensor",
          "linear:4:row",
          "linear:4:block:64",
          "linear:4:tile:8x8",
          "linear:4:tile:64x64",
          "stable-embedding:8:sorted",
          "trellis:1.25",
          "trellis:2"};
}

/// Batch sizes, among them each layer's last one for few_pixels (264 tiles of 32 pixels x 64
/// filters at most) and the next.
inline std::vector<int64_t> route_batches(const RouteLayer& layer) {
  std::vector<int64_t> batches = {1, 8, 9, 16, 17, 47, 48, 128, 1024};
  if (!layer.linear()) {
    const int64_t pixels = layer.outputs() * layer.outputs();
    const int64_t most = 264 / ((layer.weight[0] + 63) / 64) * 32 / pixels;
    for (const int64_t batch : {most, most + 1})
      if (std::ranges::find(batches, batch) == batches.end()) batches.push_back(batch);
    std::ranges::sort(batches);
  }
  return batches;
}

/// The whole table as text, one answer a cell. Schemes with the same answers share lines, batches
/// too; so do architectures.
class RouteTable {
 public:
  using Answer = std::function<std::string(const RouteQuestion&)>;

  static std::string of(const Answer& answer) {
    RouteTable table;
    for (const RouteLayer& layer : route_layers()) table.ask(layer, answer);
    return table.text();
  }

 private:
  static constexpr std::array architectures = {80, 89, 90};
  using Answers = std::vector<std::string>;  // by batch
  struct Line {
    std::string scheme;
    Answers answers;
  };
  using Section = std::vector<std::vector<Line>>;  // by layer

  void ask(const RouteLayer& layer, const Answer& answer) {
    std::vector<std::string> schemes = packed_route_schemes();
    for (const auto* scheme : {"float16", "float32", "trained"}) schemes.emplace_back(scheme);
    const auto layer_index = static_cast<size_t>(&layer - route_layers().data());
    for (const std::string& scheme : schemes)
      for (const auto& [column, precision, title] : columns())
        for (const int architecture : architectures) {
          Line line{scheme, {}};
          for (const int64_t batch : route_batches(layer))
            if (const RouteQuestion q{column, precision, architecture, layer, scheme, batch}; exists(q))
              line.answers.push_back(answer(q));
          if (line.answers.empty()) continue;
          Section& section = sections_[{title, architecture}];
          section.resize(route_layers().size());
          section[layer_index].push_back(std::move(line));
        }
  }

  struct Column {
    RouteColumn column;
    Precision precision;
    std::string title;
  };
  static std::vector<Column> columns() {
    return {{RouteColumn::forward, Precision::float16, "forward, T224, float16"},
            {RouteColumn::forward, Precision::float32, "forward, T224, float32"},
            {RouteColumn::folded, Precision::float16, "forward, T32, float16: the first layer; others as T224"},
            {RouteColumn::folded, Precision::float32, "forward, T32, float32: the first layer; others as T224"},
            {RouteColumn::pooled, Precision::float16, "convolution with max pooling, float16"},
            {RouteColumn::pooled, Precision::float32, "convolution with max pooling, float32"},
            {RouteColumn::data_gradient, Precision::float16, "data gradient, float16"},
            {RouteColumn::data_gradient, Precision::float32, "data gradient, float32"},
            {RouteColumn::weight_gradient, Precision::float16, "weight gradient, float16"},
            {RouteColumn::weight_gradient, Precision::float32, "weight gradient, float32"},
            {RouteColumn::step, Precision::float16, "weight gradient with a step of SGD, float16"},
            {RouteColumn::step, Precision::float32, "weight gradient with a step of SGD, float32"}};
  }

  std::string text() const {
    std::string text;
    for (const Column& column : columns()) {
      std::map<std::string, std::string> bodies;  // and the architectures that share them
      std::vector<std::string> order;
      for (const int architecture : architectures) {
        const auto found = sections_.find({column.title, architecture});
        if (found == sections_.end()) continue;
        const std::string body = text_of(found->second);
        std::string& heads = bodies[body];
        if (heads.empty()) order.push_back(body);
        heads += fmt::format(" sm_{}", architecture);
      }
      for (const std::string& body : order) text += fmt::format("\n[{}]{}\n{}", column.title, bodies[body], body);
    }
    return text;
  }

  static std::string text_of(const Section& section) {
    std::string text;
    for (size_t i = 0; i < section.size(); ++i) {
      std::vector<std::pair<std::string, Answers>> groups;  // schemes with the same answers
      for (const Line& line : section[i]) {
        const auto same = [&](const auto& group) { return group.second == line.answers; };
        if (const auto found = std::ranges::find_if(groups, same); found != groups.end())
          found->first += " " + line.scheme;
        else
          groups.emplace_back(line.scheme, line.answers);
      }
      for (const auto& [schemes, answers] : groups)
        text += fmt::format("{}: {}\n{}", route_layers()[i].name, groups.size() == 1 ? "every scheme" : schemes,
                            runs_of(route_batches(route_layers()[i]), answers));
    }
    return text;
  }

  /// "  1-16 few_rows": batches from the first to the last of a run of one answer.
  static std::string runs_of(const std::vector<int64_t>& batches, const Answers& answers) {
    std::string text;
    for (size_t begin = 0, end = 0; begin < answers.size(); begin = end) {
      while (end < answers.size() && answers[end] == answers[begin]) ++end;
      const std::string until = end > begin + 1 ? fmt::format("-{}", batches[end - 1]) : "";
      text += fmt::format("  {}{} {}\n", batches[begin], until, answers[begin]);
    }
    return text;
  }

  std::map<std::pair<std::string, int>, Section> sections_;
};

/// Compares the table of these answers with tests/data/routes.txt.
inline void expect_routes_of_the_table(const RouteTable::Answer& answer) {
  const std::string table = RouteTable::of(answer);
  std::ifstream file(test_data_folder() / "routes.txt");
  std::string expected;
  for (std::string line; std::getline(file, line);)
    if (!line.starts_with('#')) expected += line + '\n';
  if (expected == table) return;
  const std::string actual = ::testing::TempDir() + "routes.txt";
  std::ofstream(actual) << table;
  FAIL() << "other kernels than tests/data/routes.txt says. Compare it with " << actual
         << "; if the change is meant, copy that behind the file's first comment.";
}

}  // namespace nibblenet::testing
