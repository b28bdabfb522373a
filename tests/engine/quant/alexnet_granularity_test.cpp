#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/quantizer.h"
#include "tests/engine/quant/cases.h"

namespace nibblenet {
namespace {

Tensor<float> uniform(const Shape& shape, uint64_t seed) {
  Tensor<float> weights(host_memory(), shape, MemoryCategory::data);
  Random random(seed);
  for (float& weight : weights.view()) weight = 2 * random.uniform() - 1;
  return weights;
}

/// A matrix, or a slice of a kernel, as rows and columns of the last two dimensions.
struct Plane {
  explicit Plane(const Shape& shape)
      : rows(shape.rank() == 2 ? shape[0] : shape[2]), columns(shape.rank() == 2 ? shape[1] : shape[3]) {}
  int64_t rows;
  int64_t columns;
};

/// For every weight, the largest magnitude in its tile of rows x columns. The loop goes tile by
/// tile, unlike GroupMap's.
std::vector<float> tile_maxima(TensorView<const float> weights, int64_t rows, int64_t columns) {
  const Plane plane(weights.shape());
  std::vector<float> maxima(static_cast<size_t>(weights.elements()));
  const auto for_tile = [&](int64_t begin, int64_t top, int64_t left, auto work) {
    for (int64_t r = top; r < std::min(top + rows, plane.rows); ++r)
      for (int64_t c = left; c < std::min(left + columns, plane.columns); ++c) work(begin + r * plane.columns + c);
  };
  for (int64_t begin = 0; begin < weights.elements(); begin += plane.rows * plane.columns)
    for (int64_t top = 0; top < plane.rows; top += rows)
      for (int64_t left = 0; left < plane.columns; left += columns) {
        float most = 0;
        for_tile(begin, top, left, [&](int64_t i) { most = std::max(most, std::fabs(weights[i])); });
        for_tile(begin, top, left, [&](int64_t i) { maxima[static_cast<size_t>(i)] = most; });
      }
  return maxima;
}

/// Sizes that divide neither way, one that divides some layers, and one larger than any kernel.
TEST(LinearTiles, WorkForEveryLayerOfAlexNetWithTails) {
  for (const auto& [text, rows, columns] :
       {std::tuple{"tile:7x5", 7, 5}, {"tile:2x2", 2, 2}, {"tile:100x1000", 100, 1000}, {"row", 1, 1 << 20}})
    for (const Shape& shape : testing::alexnet_weights) {
      if (shape.elements() > 1'000'000 && rows != 100) continue;  // the largest layers by one tile
      SCOPED_TRACE(std::string(text) + " " + to_string(shape));
      const Tensor<float> weights = uniform(shape, 1);
      const PackedTensor packed = quantize(weights.view(), parse_scheme(fmt::format("linear:4:{}", text)), "w");
      std::vector<float> actual(static_cast<size_t>(shape.elements()));
      dequantize(packed, {actual.data(), shape});
      const std::vector<float> maxima = tile_maxima(weights.view(), rows, columns);
      int64_t wrong = 0;  // codes -7…7 of the tile's maximum: half a step, and two roundings of float
      for (size_t i = 0; i < actual.size(); ++i)
        wrong +=
            std::fabs(actual[i] - weights.view()[static_cast<int64_t>(i)]) > maxima[i] * (0.5F / 7 + 1e-6F) ? 1 : 0;
      EXPECT_EQ(wrong, 0);
      const Plane plane(shape);
      const int64_t tiles = ((plane.rows + rows - 1) / rows) * ((plane.columns + columns - 1) / columns);
      EXPECT_EQ(packed.groups(), tiles * shape.elements() / (plane.rows * plane.columns));
    }
}

}  // namespace
}  // namespace nibblenet
