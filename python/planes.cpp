#include "python/planes.h"

#include <algorithm>

namespace nibblenet::python {
namespace {

/// Calls copy(pixel's value, plane's value) with the addresses of every pair of `pixels` [N, H, W,
/// C] and of the planes' images from `first` on. A row's channels go together, few at a time: both
/// sides are then read and written in runs.
template <class T, class Plane, class Copy>
void each_pair(TensorView<T> pixels, const Planes<Plane>& planes, int64_t first, Copy copy) {
  constexpr int64_t together = 16, few = 1 << 12;  // values that are copied before other threads wake up
  const auto [n, c, h, w] = planes.strides;
  const int64_t height = pixels.size(1), width = pixels.size(2), channels = pixels.size(3);
  const auto each_of_row = [&, n = n, c = c, h = h, w = w](int64_t y) {
    T* row = pixels.data() + y * width * channels;
    Plane* plane = planes.data + (first + y / height) * n + y % height * h;
    if (channels == 3 && w == 1) {  // images
      for (int64_t x = 0; x < width; ++x) {
        copy(row[3 * x], plane[x]);
        copy(row[3 * x + 1], plane[x + c]);
        copy(row[3 * x + 2], plane[x + 2 * c]);
      }
      return;
    }
    for (int64_t begin = 0; begin < channels; begin += together) {
      const int64_t end = std::min(begin + together, channels);
      for (int64_t x = 0; x < width; ++x)
        for (int64_t channel = begin; channel < end; ++channel)
          copy(row[x * channels + channel], plane[x * w + channel * c]);
    }
  };
  const int64_t rows = pixels.size(0) * height;
  if (pixels.elements() <= few) {
    for (int64_t y = 0; y < rows; ++y) each_of_row(y);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t y = 0; y < rows; ++y) each_of_row(y);
}

}  // namespace

template <class T>
std::optional<TensorView<T>> channels_last(const Planes<T>& planes) {
  const auto [n, c, h, w] = planes.strides;
  const Shape& shape = planes.shape;
  const auto lies = [](int64_t size, int64_t stride, int64_t expected) { return size <= 1 || stride == expected; };
  if (!lies(shape[1], c, 1) || !lies(shape[3], w, shape[1]) || !lies(shape[2], h, shape[3] * shape[1]) ||
      !lies(shape[0], n, shape.inner_elements()))
    return std::nullopt;
  return TensorView<T>(planes.data, {shape[0], shape[2], shape[3], shape[1]});
}
template std::optional<TensorView<float>> channels_last(const Planes<float>&);
template std::optional<TensorView<const float>> channels_last(const Planes<const float>&);

void gather(TensorView<float> to, const Planes<const float>& from, int64_t first) {
  each_pair(to, from, first, [](float& pixel, const float& plane) { pixel = plane; });
}

void scatter(const Planes<float>& to, TensorView<const float> from) {
  each_pair(from, to, 0, [](const float& pixel, float& plane) { plane = pixel; });
}

}  // namespace nibblenet::python
