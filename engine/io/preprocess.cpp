#include "engine/io/preprocess.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/io/cifar10.h"

namespace nibblenet {
namespace {

constexpr int32_t half_step = 1 << (resample_precision - 1);

/// The weights of output pixels [begin, begin + size) of `resized`, in double like Pillow's
/// Resample.c: precompute_coeffs and normalize_coeffs_8bpc for the triangle filter.
ResampleAxis make_axis(int source, int64_t resized, int64_t begin, int size) {
  const double scale = static_cast<double>(source) / static_cast<double>(resized);
  const double filter_scale = std::max(scale, 1.0);  // shrinking widens the filter: antialiasing
  const double support = filter_scale;               // the triangle reaches 1 to each side
  const double inverse = 1.0 / filter_scale;
  ResampleAxis axis;
  axis.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.weights.assign(static_cast<size_t>(axis.taps) * static_cast<size_t>(size), 0);
  std::vector<double> raw(static_cast<size_t>(axis.taps));
  for (int i = 0; i < size; ++i) {
    const double center = (static_cast<double>(begin + i) + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), source) - first;
    double sum = 0;
    for (int t = 0; t < count; ++t) {
      const double distance = std::abs((t + first - center + 0.5) * inverse);
      raw[static_cast<size_t>(t)] = distance < 1.0 ? 1.0 - distance : 0.0;
      sum += raw[static_cast<size_t>(t)];
    }
    for (int t = 0; t < count; ++t) {
      double weight = raw[static_cast<size_t>(t)];
      if (sum != 0.0) weight /= sum;
      axis.weights[static_cast<size_t>(i) * static_cast<size_t>(axis.taps) + static_cast<size_t>(t)] =
          static_cast<int32_t>(0.5 + weight * (1 << resample_precision));
    }
    axis.first.push_back(first);
    axis.count.push_back(count);
  }
  return axis;
}

/// torchvision: int(round((resized - crop) / 2.0)), where Python rounds halves to the even
/// neighbour.
int64_t crop_begin(int64_t resized, int crop) {
  const int64_t difference = resized - crop;
  const int64_t half = difference / 2;
  return half + (difference & half & 1);
}

}  // namespace

Preprocess Preprocess::for_image_size(int size) {
  if (size < 1 || size > max_size)
    fail<UsageError>("an image size of {} is not supported; use 1 to {}", size, max_size);
  Preprocess parameters;
  parameters.resize = size == cifar_side ? size : static_cast<int>(std::lround(size * 256.0 / 224.0));
  parameters.crop = size;
  return parameters;
}

ResampleTables make_resample_tables(const Preprocess& parameters, int width, int height) {
  const int crop = parameters.crop;
  if (crop < 1 || crop > parameters.resize || parameters.resize > 2 * Preprocess::max_size)
    fail<UsageError>("cannot crop {} of {} pixels; expected 1 <= crop <= resize <= {}", crop, parameters.resize,
                     2 * Preprocess::max_size);
  if (width < 1 || height < 1) fail<ShapeError>("an image of {} x {} pixels cannot be resized", width, height);
  ResampleTables tables;
  tables.crop = crop;
  for (size_t channel = 0; channel < 3; ++channel) {
    const float mean = parameters.mean[channel];
    const float deviation = parameters.deviation[channel];
    if (!(deviation > 0))
      fail<UsageError>("channel {} has a standard deviation of {}; expected above 0", channel, deviation);
    for (size_t value = 0; value < 256; ++value)  // float32 steps, as torch does
      tables.normalized[channel][value] = (static_cast<float>(value) / 255.0F - mean) / deviation;
  }
  // torchvision: the shorter side becomes `resize`, the longer one int(resize * longer / shorter).
  const int64_t shorter = std::min(width, height);
  const int64_t longer = std::max(width, height);
  const auto stretched =
      static_cast<int64_t>(static_cast<double>(parameters.resize * longer) / static_cast<double>(shorter));
  const int64_t resized_width = width <= height ? parameters.resize : stretched;
  const int64_t resized_height = width <= height ? stretched : parameters.resize;
  tables.horizontal = make_axis(width, resized_width, crop_begin(resized_width, crop), crop);
  tables.vertical = make_axis(height, resized_height, crop_begin(resized_height, crop), crop);
  tables.width = width;
  tables.height = height;
  return tables;
}

Preprocessor::Preprocessor(const Preprocess& parameters) : parameters_(parameters) {
  make_resample_tables(parameters, 1, 1);  // refuses parameters that make no sense
  sums_.resize(static_cast<size_t>(parameters.crop) * 3);
}

void Preprocessor::run(const uint8_t* image, int width, int height, bool flip, float* out) {
  const bool prepared = width == tables_.width && height == tables_.height;
  if (!prepared || width < 1) prepare(width, height);
  resize_rows(image, flip);
  for (int y = 0; y < parameters_.crop; ++y) write_row(y, out + static_cast<size_t>(y) * sums_.size());
}

void Preprocessor::prepare(int width, int height) {
  tables_ = {};  // none are half-made when memory runs out
  ResampleTables made = make_resample_tables(parameters_, width, height);
  first_row_ = made.vertical.first.front();
  const int end_row = made.vertical.first.back() + made.vertical.count.back();
  rows_.resize(static_cast<size_t>(end_row - first_row_) * static_cast<size_t>(made.crop) * 3);
  tables_ = std::move(made);
}

/// The horizontal pass, which PIL does first, for the rows that the crop depends on. `flip` writes
/// column x to its mirror's place, which costs nothing.
void Preprocessor::resize_rows(const uint8_t* image, bool flip) {
  const auto crop = static_cast<size_t>(parameters_.crop);
  const size_t row_count = rows_.size() / (crop * 3);
  for (size_t row = 0; row < row_count; ++row) {
    const uint8_t* source = image + (static_cast<size_t>(first_row_) + row) * static_cast<size_t>(tables_.width) * 3;
    uint8_t* target = rows_.data() + row * crop * 3;
    for (size_t x = 0; x < crop; ++x) {
      const int32_t* weights = tables_.horizontal.weights.data() + x * static_cast<size_t>(tables_.horizontal.taps);
      const uint8_t* pixel = source + static_cast<size_t>(tables_.horizontal.first[x]) * 3;
      int32_t red = half_step, green = half_step, blue = half_step;
      for (int t = 0; t < tables_.horizontal.count[x]; ++t, pixel += 3) {
        red += weights[t] * pixel[0];
        green += weights[t] * pixel[1];
        blue += weights[t] * pixel[2];
      }
      uint8_t* to = target + (flip ? crop - 1 - x : x) * 3;
      to[0] = resampled_byte(red);
      to[1] = resampled_byte(green);
      to[2] = resampled_byte(blue);
    }
  }
}

/// The vertical pass of one output row, and the table look-up that turns its bytes into floats.
void Preprocessor::write_row(int y, float* out) {
  const size_t row_bytes = sums_.size();
  const auto index = static_cast<size_t>(y);
  const uint8_t* source = rows_.data() + static_cast<size_t>(tables_.vertical.first[index] - first_row_) * row_bytes;
  const int32_t* weights = tables_.vertical.weights.data() + index * static_cast<size_t>(tables_.vertical.taps);
  int32_t* sum = sums_.data();
  std::fill_n(sum, row_bytes, half_step);
  for (int t = 0; t < tables_.vertical.count[index]; ++t, source += row_bytes) {
    // A weight of 1 is 2^22: cut into halves of 11 bits, each product is one 16-bit multiplication,
    // which every x86 processor does eight at a time, unlike 32-bit ones. The sum is exactly weight
    // * pixel.
    const auto high = static_cast<int16_t>(weights[t] >> 11);
    const auto low = static_cast<int16_t>(weights[t] & 2047);
    for (size_t i = 0; i < row_bytes; ++i) {
      const auto pixel = static_cast<int16_t>(source[i]);
      sum[i] += ((high * pixel) << 11) + low * pixel;
    }
  }
  for (size_t i = 0; i < row_bytes; i += 3) {
    for (size_t channel = 0; channel < 3; ++channel)
      out[i + channel] = tables_.normalized[channel][resampled_byte(sum[i + channel])];
  }
}

}  // namespace nibblenet
