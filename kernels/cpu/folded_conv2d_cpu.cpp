#include "kernels/cpu/folded_conv2d_cpu.h"

#include <omp.h>

#include <algorithm>
#include <array>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/decode_cpu.h"
#include "kernels/cpu/weight_cpu.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibblenet {
namespace {

/// The operands of output pixels that share a pattern and a row.
struct Strip {
  const float* filters;  ///< [taps, run, K]
  const float* biases;   ///< [K]
  int64_t channels;      ///< K
  int64_t taps;          ///< source rows
  int64_t run;           ///< values of a source row that a window holds: horizontal taps x 3
  int64_t stride;        ///< from one source row to the next
  bool with_relu;
};

/// Computes y[i][first, first + width) of a few output pixels i, whose windows begin at x[i].
using Tile = void (*)(const Strip& s, const float* const* x, float* const* y, int64_t first, int64_t width);

constexpr int most_pixels = 6;

template <int pixels>
void tile_portable(const Strip& s, const float* const* x, float* const* y, int64_t first, int64_t width) {
  for (int i = 0; i < pixels; ++i) {
    float* sum = y[i] + first;
    std::copy_n(s.biases + first, width, sum);
    for (int64_t a = 0; a < s.taps; ++a)
      for (int64_t t = 0; t < s.run; ++t) {
        const float value = x[i][a * s.stride + t];
        const float* filter = s.filters + (a * s.run + t) * s.channels + first;
        for (int64_t k = 0; k < width; ++k) sum[k] += value * filter[k];
      }
    for (int64_t k = 0; k < width && s.with_relu; ++k) sum[k] = sum[k] < 0.0F ? 0.0F : sum[k];
  }
}

#if defined(__x86_64__)

// max(0, sum), in this order, keeps NaN. (Without the mask, GCC 12 warns of its own header.)

/// 64 channels: 24 sums in registers. `width` is 64.
template <int pixels>
__attribute__((target("avx512f"))) void tile_avx512(const Strip& s, const float* const* x, float* const* y,
                                                    int64_t first, int64_t) {
  __m512 sum[pixels][4];
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[i][v] = _mm512_loadu_ps(s.biases + first + 16 * v);
  for (int64_t a = 0; a < s.taps; ++a) {
    const float* filter = s.filters + a * s.run * s.channels + first;
    for (int64_t t = 0; t < s.run; ++t, filter += s.channels) {
      const __m512 weights[4] = {_mm512_loadu_ps(filter), _mm512_loadu_ps(filter + 16), _mm512_loadu_ps(filter + 32),
                                 _mm512_loadu_ps(filter + 48)};
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) {
        const __m512 value = _mm512_set1_ps(x[i][a * s.stride + t]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum[i][v] = _mm512_fmadd_ps(value, weights[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      _mm512_storeu_ps(y[i] + first + 16 * v,
                       s.with_relu ? _mm512_maskz_max_ps(0xFFFF, _mm512_setzero_ps(), sum[i][v]) : sum[i][v]);
}

/// 16 channels: 12 sums in registers. `width` is 16.
template <int pixels>
__attribute__((target("avx2,fma"))) void tile_avx2(const Strip& s, const float* const* x, float* const* y,
                                                   int64_t first, int64_t) {
  __m256 sum[pixels][2];
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) sum[i][v] = _mm256_loadu_ps(s.biases + first + 8 * v);
  for (int64_t a = 0; a < s.taps; ++a) {
    const float* filter = s.filters + a * s.run * s.channels + first;
    for (int64_t t = 0; t < s.run; ++t, filter += s.channels) {
      const __m256 weights[2] = {_mm256_loadu_ps(filter), _mm256_loadu_ps(filter + 8)};
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) {
        const __m256 value = _mm256_set1_ps(x[i][a * s.stride + t]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) sum[i][v] = _mm256_fmadd_ps(value, weights[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v)
      _mm256_storeu_ps(y[i] + first + 8 * v, s.with_relu ? _mm256_max_ps(_mm256_setzero_ps(), sum[i][v]) : sum[i][v]);
}

constexpr std::array<Tile, most_pixels> tiles_avx512 = {tile_avx512<1>, tile_avx512<2>, tile_avx512<3>,
                                                        tile_avx512<4>, tile_avx512<5>, tile_avx512<6>};
constexpr std::array<Tile, most_pixels> tiles_avx2 = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>,
                                                      tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
#endif
constexpr std::array<Tile, most_pixels> tiles_portable = {tile_portable<1>, tile_portable<2>, tile_portable<3>,
                                                          tile_portable<4>, tile_portable<5>, tile_portable<6>};

/// Functions that compute `width` channels at a time, for 1 to most_pixels pixels.
struct Path {
  const Tile* tiles;
  int64_t width;
};

Path best_path() {
#if defined(__x86_64__)
  if (best_decode_path() == DecodePath::avx512) return {tiles_avx512.data(), 64};
  if (best_decode_path() == DecodePath::avx2) return {tiles_avx2.data(), 16};
#endif
  return {tiles_portable.data(), 64};
}

/// Computes whole tiles of the path's width, then the remaining channels.
void run_tile(const Path& path, const Strip& s, int pixels, const float* const* x, float* const* y) {
  int64_t first = 0;
  for (; first + path.width <= s.channels; first += path.width) path.tiles[pixels - 1](s, x, y, first, path.width);
  if (first < s.channels) tiles_portable[static_cast<size_t>(pixels - 1)](s, x, y, first, s.channels - first);
}

}  // namespace

FoldedConv2dCpu::FoldedConv2dCpu(MemoryResource& memory, const FoldedConvolution& folded, int threads)
    : geometry_(folded),
      columns_(static_cast<size_t>(folded.horizontal.patterns)),
      filters_(copy_of(memory, folded.filters, MemoryCategory::weights)),
      biases_(copy_of(memory, folded.biases, MemoryCategory::biases)),
      memory_(memory),
      threads_(threads) {
  geometry_.filters = geometry_.biases = {};
  for (int64_t q = 0; q < folded.columns(); ++q)
    columns_[static_cast<size_t>(folded.horizontal.pattern[static_cast<size_t>(q)])].push_back(static_cast<int32_t>(q));
}

ResidentSize FoldedConv2dCpu::resident() const {
  ResidentSize size;
  size.weights = static_cast<int64_t>(filters_.bytes());
  size.biases = static_cast<int64_t>(biases_.bytes());
  return size;
}

void FoldedConv2dCpu::run(Activations out, TensorView<const uint8_t> images, Epilogue epilogue) {
  const int64_t batch = images.size(0), rows = geometry_.rows(), columns = geometry_.columns();
  expect_shape(images.shape(), {batch, geometry_.height, geometry_.width, 3}, "images");
  expect_shape(out.shape(), {batch, rows, columns, geometry_.channels_out}, "folded convolution output");
  float* y = out.floats().data();
  const int64_t scratch = int64_t{geometry_.vertical.taps} * geometry_.width * 3;
  if (rows_.size() == 0)
    rows_ = Buffer<float>(memory_, static_cast<size_t>(threads_ * scratch), MemoryCategory::workspace);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_)
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t p = 0; p < rows; ++p)
      run_row(y + (n * rows + p) * columns * geometry_.channels_out,
              images.data() + n * int64_t{geometry_.height} * geometry_.width * 3, p,
              rows_.data() + omp_get_thread_num() * scratch, epilogue);
}

void FoldedConv2dCpu::run_row(float* y, const uint8_t* image, int64_t p, float* rows, Epilogue epilogue) const {
  const FoldedAxis& vertical = geometry_.vertical;
  const FoldedAxis& horizontal = geometry_.horizontal;
  const int64_t stride = int64_t{geometry_.width} * 3, channels = geometry_.channels_out;
  const uint8_t* source = image + vertical.first[static_cast<size_t>(p)] * stride;
  for (int64_t i = 0; i < vertical.taps * stride; i += 3)
    for (int64_t c = 0; c < 3; ++c)
      rows[i + c] = static_cast<float>(source[i + c] - geometry_.center[static_cast<size_t>(c)]);
  const Path path = best_path();
  for (int64_t h = 0; h < horizontal.patterns; ++h) {
    const int64_t pattern = vertical.pattern[static_cast<size_t>(p)] * int64_t{horizontal.patterns} + h;
    const Strip strip{.filters = filters_.data() + pattern * geometry_.length() * channels,
                      .biases = biases_.data() + pattern * channels,
                      .channels = channels,
                      .taps = vertical.taps,
                      .run = int64_t{horizontal.taps} * 3,
                      .stride = stride,
                      .with_relu = epilogue == Epilogue::relu};
    const std::vector<int32_t>& columns = columns_[static_cast<size_t>(h)];
    for (size_t i = 0; i < columns.size(); i += most_pixels) {
      const auto count = static_cast<int>(std::min<size_t>(most_pixels, columns.size() - i));
      const float* x[most_pixels];
      float* to[most_pixels];
      for (int j = 0; j < count; ++j) {
        const auto q = static_cast<size_t>(columns[i + static_cast<size_t>(j)]);
        x[j] = rows + int64_t{horizontal.first[q]} * 3;
        to[j] = y + static_cast<int64_t>(q) * channels;
      }
      run_tile(path, strip, count, x, to);
    }
  }
}

std::unique_ptr<FoldedConv2d> CpuBackend::make_folded_conv2d(const FoldedConvolution& folded, Precision precision) {
  expect_support(precision);
  return std::make_unique<FoldedConv2dCpu>(*this, folded, threads_);
}

}  // namespace nibblenet
