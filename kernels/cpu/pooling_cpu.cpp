#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/processor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibblenet {
namespace {

/// y[n, column, row] = x[n, row, column].
template <class T>
void transpose(TensorView<T> y, TensorView<const T> x, int64_t images, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < images; ++n)
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t row = 0; row < rows; ++row)
        y[(n * columns + column) * rows + row] = x[(n * rows + row) * columns + column];
}

/// Bytes that are made from bytes alone stand for what those do.
void keep_form(Activations y, ConstActivations x) {
  if (y.form().scale != x.form().scale) throw Error("bytes of one scale cannot become bytes of another");
  std::copy_n(x.form().invalid, x.size(0), y.form().invalid);
}

/// Whether `candidate` replaces `best`. A NaN wins and stays, as in PyTorch.
bool beats(float candidate, float best) { return candidate > best || std::isnan(candidate); }

/// The input rows, or columns, [begin, end) that an output's window covers.
struct WindowRange {
  int64_t begin, end;
  WindowRange(int64_t output, Window window, int64_t inputs)
      : begin(std::max<int64_t>(0, output * window.stride - window.padding)),
        end(std::min(inputs, output * window.stride - window.padding + window.size)) {}
  int64_t size() const { return end - begin; }
};

/// The pixels of a pooling window: corners of [rows][columns] pixels, `row_floats` and `channels`
/// floats apart.
struct PooledPixels {
  const float* first;
  int64_t rows, columns;
  int64_t row_floats, channels;
};

/// y[channels] = the largest values of a window.
void largest_portable(const PooledPixels& x, float* y) {
  std::fill_n(y, x.channels, -std::numeric_limits<float>::infinity());
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t s = 0; s < x.columns; ++s) {
      const float* pixel = x.first + r * x.row_floats + s * x.channels;
      for (int64_t c = 0; c < x.channels; ++c) y[c] = beats(pixel[c], y[c]) ? pixel[c] : y[c];
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void largest_avx2(const PooledPixels& x, float* y) {
  constexpr int64_t lanes = 8;
  if (x.channels % lanes != 0) return largest_portable(x, y);
  for (int64_t c = 0; c < x.channels; c += lanes) {
    __m256 best = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    __m256 any_nan = _mm256_setzero_ps();
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t s = 0; s < x.columns; ++s) {
        const __m256 value = _mm256_loadu_ps(x.first + r * x.row_floats + s * x.channels + c);
        any_nan = _mm256_or_ps(any_nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        best = _mm256_max_ps(value, best);  // of a NaN and `best`: `best`
      }
    if (_mm256_movemask_ps(any_nan) != 0) return largest_portable(x, y);
    _mm256_storeu_ps(y + c, best);
  }
}
#endif

/// largest_portable() or a faster one with the same bits.
auto* best_largest() {
#if defined(__x86_64__)
  if (best_instruction_set() >= InstructionSet::avx2) return largest_avx2;
#endif
  return largest_portable;
}

}  // namespace

namespace {

/// y[channels] = the largest bytes of a window.
void largest_bytes(const uint8_t* first, int64_t rows, int64_t columns, int64_t row_bytes, int64_t channels,
                   uint8_t* __restrict y) {
  std::copy_n(first, channels, y);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; ++s) {
      const uint8_t* pixel = first + r * row_bytes + s * channels;
      for (int64_t c = 0; c < channels; ++c) y[c] = std::max(y[c], pixel[c]);
    }
}

/// Of bytes. Rounding keeps the order, so the largest byte is that of the largest number.
void max_pool_bytes(TensorView<uint8_t> y, TensorView<const uint8_t> x, Window window) {
  const int64_t height = x.size(1), width = x.size(2), channels = x.size(3);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < y.size(0) * y.size(1); ++row) {
    const uint8_t* image = x.data() + row / y.size(1) * height * width * channels;
    const WindowRange down(row % y.size(1), window, height);
    for (int64_t q = 0; q < y.size(2); ++q) {
      const WindowRange across(q, window, width);
      largest_bytes(image + (down.begin * width + across.begin) * channels, down.size(), across.size(),
                    width * channels, channels, y.data() + (row * y.size(2) + q) * channels);
    }
  }
}

}  // namespace

void CpuBackend::max_pool2d_forward(Activations out, TensorView<uint8_t> argmax, ConstActivations in, Window window) {
  if (in.precision() == Precision::int8 && argmax.data() == nullptr) {
    max_pool_bytes(out.bytes(), in.bytes(), window);
    return keep_form(out, in);
  }
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  const int64_t height = x.size(1), width = x.size(2), channels = x.size(3);
  const int64_t rows = y.size(0) * y.size(1);
  const bool record = argmax.data() != nullptr;
  auto* const largest = best_largest();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t n = row / y.size(1), p = row % y.size(1);
    const int64_t top = std::max<int64_t>(0, p * window.stride - window.padding);
    const int64_t bottom = std::min(height, p * window.stride - window.padding + window.size);
    for (int64_t q = 0; q < y.size(2); ++q) {
      const int64_t output = (row * y.size(2) + q) * channels;
      float* best = y.data() + output;
      const int64_t left = std::max<int64_t>(0, q * window.stride - window.padding);
      const int64_t right = std::min(width, q * window.stride - window.padding + window.size);
      const float* corner = x.data() + ((n * height + top) * width + left) * channels;
      if (!record) {
        largest({corner, bottom - top, right - left, width * channels, channels}, best);
        continue;
      }
      // If nothing exceeds -infinity, the first element outside the padding wins.
      std::fill_n(best, channels, -std::numeric_limits<float>::infinity());
      uint8_t* where = argmax.data() + output;
      const auto position = [&](int64_t h, int64_t w) {
        return static_cast<uint8_t>((h - p * window.stride + window.padding) * window.size + w - q * window.stride +
                                    window.padding);
      };
      std::fill_n(where, channels, position(top, left));
      for (int64_t h = top; h < bottom; ++h)
        for (int64_t w = left; w < right; ++w) {
          const float* pixel = x.data() + ((n * height + h) * width + w) * channels;
          const uint8_t here = position(h, w);
          for (int64_t c = 0; c < channels; ++c) {
            const bool better = beats(pixel[c], best[c]);
            where[c] = better ? here : where[c];
            best[c] = better ? pixel[c] : best[c];
          }
        }
    }
  }
}

void CpuBackend::max_pool2d_backward(Activations to, ConstActivations from, TensorView<const uint8_t> argmax,
                                     Window window, const GradientStore& store) {
  const TensorView<float> dx = to.floats();
  const TensorView<const float> dy = from.floats();
  const int64_t height = dx.size(1), width = dx.size(2), channels = dx.size(3);
  const int64_t outputs_down = dy.size(1), outputs_across = dy.size(2);
  // A gather: each input pixel adds the gradients of the windows that chose it, so rows need no
  // locks.
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < dx.size(0) * height; ++row) {
    const int64_t n = row / height, h = row % height;
    for (int64_t w = 0; w < width; ++w) {
      float* gradient = dx.data() + (row * width + w) * channels;
      std::fill_n(gradient, channels, 0.0F);
      for (int64_t r = 0; r < window.size; ++r) {
        const int64_t down = h + window.padding - r;
        if (down < 0 || down % window.stride != 0 || down / window.stride >= outputs_down) continue;
        for (int64_t s = 0; s < window.size; ++s) {
          const int64_t across = w + window.padding - s;
          if (across < 0 || across % window.stride != 0 || across / window.stride >= outputs_across) continue;
          const int64_t output =
              ((n * outputs_down + down / window.stride) * outputs_across + across / window.stride) * channels;
          const auto position = static_cast<uint8_t>(r * window.size + s);
          for (int64_t c = 0; c < channels; ++c) gradient[c] += argmax[output + c] == position ? dy[output + c] : 0.0F;
        }
      }
    }
  }
  finish_gradient(to, store);
}

void CpuBackend::adaptive_average_pool2d_forward(Activations out, ConstActivations in) {
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  const int64_t height = x.size(1), width = x.size(2), channels = x.size(3);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < y.size(0) * y.size(1); ++row) {
    const int64_t n = row / y.size(1);
    const PooledRange down(row % y.size(1), y.size(1), height);
    for (int64_t q = 0; q < y.size(2); ++q) {
      const PooledRange across(q, y.size(2), width);
      float* sum = y.data() + (row * y.size(2) + q) * channels;
      std::fill_n(sum, channels, 0.0F);
      for (int64_t h = down.begin; h < down.end; ++h) {
        for (int64_t w = across.begin; w < across.end; ++w) {
          const float* pixel = x.data() + ((n * height + h) * width + w) * channels;
          for (int64_t c = 0; c < channels; ++c) sum[c] += pixel[c];
        }
      }
      const auto pixels = static_cast<float>(down.size() * across.size());
      for (int64_t c = 0; c < channels; ++c) sum[c] /= pixels;
    }
  }
}

void CpuBackend::adaptive_average_pool2d_backward(Activations to, ConstActivations from) {
  const TensorView<float> dx = to.floats();
  const TensorView<const float> dy = from.floats();
  const int64_t height = dx.size(1), width = dx.size(2), channels = dx.size(3);
  const int64_t outputs_down = dy.size(1), outputs_across = dy.size(2);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < dx.size(0); ++n) {
    float* image = dx.data() + n * height * width * channels;
    std::fill_n(image, height * width * channels, 0.0F);
    for (int64_t p = 0; p < outputs_down; ++p) {
      const PooledRange down(p, outputs_down, height);
      for (int64_t q = 0; q < outputs_across; ++q) {
        const PooledRange across(q, outputs_across, width);
        const float* gradient = dy.data() + ((n * outputs_down + p) * outputs_across + q) * channels;
        const auto pixels = static_cast<float>(down.size() * across.size());
        for (int64_t h = down.begin; h < down.end; ++h)
          for (int64_t w = across.begin; w < across.end; ++w)
            for (int64_t c = 0; c < channels; ++c) image[(h * width + w) * channels + c] += gradient[c] / pixels;
      }
    }
  }
}

void CpuBackend::flatten_forward(Activations y, ConstActivations x) {
  const int64_t pixels = x.size(1) * x.size(2);
  if (x.precision() != Precision::int8) return transpose(y.floats(), x.floats(), x.size(0), pixels, x.size(3));
  transpose(y.bytes(), x.bytes(), x.size(0), pixels, x.size(3));
  keep_form(y, x);
}

void CpuBackend::flatten_backward(Activations dx, ConstActivations dy) {
  transpose(dx.floats(), dy.floats(), dx.size(0), dx.size(3), dx.size(1) * dx.size(2));
}

}  // namespace nibblenet
