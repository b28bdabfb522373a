#include "engine/core/tensor.h"

#include <fmt/ranges.h>

namespace nibblenet {

Shape::Shape(std::span<const int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
  constexpr int64_t largest = int64_t{1} << 62;
  if (sizes.size() > max_rank)
    fail<ShapeError>("a tensor of {} dimensions; at most {} are supported", sizes.size(), max_rank);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0) fail<ShapeError>("a tensor dimension of negative size {}", sizes[i]);
    if (sizes[i] != 0 && elements_ > largest / sizes[i]) fail<ShapeError>("a tensor too large to address");
    sizes_[i] = sizes[i];
    elements_ *= sizes[i];
  }
}

std::string to_string(const Shape& shape) {
  return shape.rank() == 0 ? "scalar" : fmt::format("{}", fmt::join(shape.sizes(), "x"));
}

void expect_shape(const Shape& actual, const Shape& expected, std::string_view what) {
  if (actual != expected) fail<ShapeError>("{}: expected {}, got {}", what, to_string(expected), to_string(actual));
}

}  // namespace nibblenet
