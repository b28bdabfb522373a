// The first convolution, folded with the preparation of its images (engine/core/fold.h): a plain
// kernel for float32, and a tensor-core kernel for fp16.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/conv/folded.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"

namespace nibblenet {
namespace {

/// Tables of FoldedAxisView, one after the other.
std::vector<int32_t> tables_of(const FoldedAxis& axis) {
  std::vector<int32_t> tables(axis.first);
  tables.insert(tables.end(), axis.pattern.begin(), axis.pattern.end());
  std::vector<int32_t> begin = {0};
  for (int32_t pattern = 0; pattern < axis.patterns; ++pattern) {
    for (size_t output = 0; output < axis.pattern.size(); ++output)
      if (axis.pattern[output] == pattern) tables.push_back(static_cast<int32_t>(output));
    begin.push_back(static_cast<int32_t>(tables.size() - 2 * axis.first.size()));
  }
  tables.insert(tables.end(), begin.begin(), begin.end());
  return tables;
}

FoldedAxisView view_of(const FoldedAxis& axis, const int32_t* tables) {
  const auto outputs = static_cast<int>(axis.first.size());
  return {axis.taps, outputs, axis.patterns, tables, tables + outputs, tables + 2 * outputs, tables + 3 * outputs};
}

/// Filters in the memory order of folded_conv2d_half_kernel.
std::vector<f16> half_filters(const FoldedConvolution& folded, float normalisation) {
  const int64_t k_tiles = ceil_div(folded.length(), 16);
  const int64_t blocks = ceil_div(folded.channels_out, folded_channel_block);
  std::vector<f16> fp16;
  fp16.reserve(static_cast<size_t>(folded.patterns() * blocks * k_tiles * 1024));
  for (int64_t s = 0; s < folded.patterns(); ++s)
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t k_tile = 0; k_tile < k_tiles; ++k_tile)
        for (int64_t i = 0; i < 1024; ++i) {
          const int64_t lane = i / 32, g = lane / 4, t = lane % 4, tile = i / 4 % 8, half = i % 4;
          const int64_t k = k_tile * 16 + 2 * t + half / 2 * 8 + half % 2;
          const int64_t channel = block * folded_channel_block + 16 * (g / 2) + 2 * tile + g % 2;
          const bool inside = k < folded.length() && channel < folded.channels_out;
          const auto at = static_cast<size_t>((s * folded.length() + k) * folded.channels_out + channel);
          fp16.push_back({f32_to_f16(inside ? folded.filters[at] * normalisation : 0.0F)});
        }
  return fp16;
}

class FoldedConv2dCuda final : public FoldedConv2d {
 public:
  FoldedConv2dCuda(MemoryResource& memory, const FoldedConvolution& folded, Precision precision, Stream& stream)
      : geometry_(folded),
        precision_(precision),
        vertical_(resident_copy(memory, tables_of(folded.vertical), MemoryCategory::weights, stream)),
        horizontal_(resident_copy(memory, tables_of(folded.horizontal), MemoryCategory::weights, stream)),
        biases_(resident_copy(memory, folded.biases, MemoryCategory::biases, stream)),
        stream_(stream) {
    geometry_.filters = geometry_.biases = {};
    if (precision == Precision::float32) {
      floats_ = resident_copy(memory, folded.filters, MemoryCategory::weights, stream);
      return;
    }
    if (ceil_div(folded.length(), 16) * 8 > folded_most_pairs)
      fail<UsageError>(
          "a folded convolution with {} weights a channel and pattern; float16 takes up to {}, float32 any",
          folded.length(), 2 * folded_most_pairs);
    const float normalisation = normalisation_for(largest_magnitude(folded.filters));
    factor_ = 1.0F / normalisation;
    fp16_ = resident_copy(memory, half_filters(folded, normalisation), MemoryCategory::weights, stream);
  }

  void run(Activations y, TensorView<const uint8_t> images, Epilogue epilogue) override {
    const int64_t batch = images.size(0), channels = geometry_.channels_out;
    expect_shape(images.shape(), {batch, geometry_.height, geometry_.width, 3}, "images");
    expect_shape(y.shape(), {batch, geometry_.rows(), geometry_.columns(), channels}, "folded convolution output");
    if (batch * geometry_.rows() * geometry_.columns() > std::numeric_limits<int>::max() - folded_block_pixels)
      fail<ShapeError>("a convolution of {} images has too many pixels; use a smaller batch", batch);
    const FoldedImages input{images.data(),
                             static_cast<int>(batch),
                             geometry_.height,
                             geometry_.width,
                             {geometry_.center[0], geometry_.center[1], geometry_.center[2]}};
    const FoldedView view{view_of(geometry_.vertical, vertical_.data()),
                          view_of(geometry_.horizontal, horizontal_.data()), static_cast<int>(channels),
                          biases_.data()};
    const Work work{.bytes = static_cast<double>(images.elements()) + static_cast<double>(resident().total()) +
                             static_cast<double>(y.elements()) * static_cast<double>(bytes_of(precision_)),
                    .flops = 2.0 * static_cast<double>(y.elements()) * static_cast<double>(geometry_.length())};
    const bool with_relu = epilogue == Epilogue::relu;
    if (precision_ == Precision::float32) {
      launch("folded_conv2d", work, grid_for(y.elements()), stream_, folded_conv2d_kernel, y.floats().data(), input,
             view, floats_.data(), with_relu, y.elements());
      return;
    }
    f16* to = y.fp16().data();
    const bool aligned = channels % 16 == 0 && on_16_bytes(to);
    const Grid grid{dim3(blocks(batch), static_cast<unsigned>(ceil_div(channels, folded_channel_block))), 128};
    launch("folded_conv2d", work, grid, stream_, folded_conv2d_half_kernel, to, input, view,
           reinterpret_cast<const uint4*>(fp16_.data()), factor_, with_relu, aligned);
  }

  ResidentSize resident() const override {
    ResidentSize size;
    size.weights = static_cast<int64_t>(vertical_.bytes() + horizontal_.bytes() + floats_.bytes() + fp16_.bytes());
    size.biases = static_cast<int64_t>(biases_.bytes());
    return size;
  }

 private:
  /// Number of blocks, as pixels_of_block() counts them.
  unsigned blocks(int64_t batch) const {
    int64_t count = 0;
    for (int32_t v = 0; v < geometry_.vertical.patterns; ++v)
      for (int32_t h = 0; h < geometry_.horizontal.patterns; ++h) {
        const int64_t pixels = batch * std::ranges::count(geometry_.vertical.pattern, v) *
                               std::ranges::count(geometry_.horizontal.pattern, h);
        count += ceil_div(pixels, folded_block_pixels);
      }
    return static_cast<unsigned>(count);
  }

  FoldedConvolution geometry_;  ///< without filters and biases
  Precision precision_;
  Buffer<int32_t> vertical_;
  Buffer<int32_t> horizontal_;
  Buffer<float> floats_;  ///< [patterns, taps, taps, 3, K]
  Buffer<f16> fp16_;
  Buffer<float> biases_;
  float factor_ = 1.0F;
  Stream& stream_;
};

}  // namespace

namespace cuda {

std::unique_ptr<FoldedConv2d> make_folded_conv2d(MemoryResource& memory, const FoldedConvolution& folded,
                                                 Precision precision, Stream& stream) {
  return std::make_unique<FoldedConv2dCuda>(memory, folded, precision, stream);
}

}  // namespace cuda
}  // namespace nibblenet
