#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {
namespace {

/// y[n, column, row] = x[n, row, column].
void transpose(TensorView<float> y, TensorView<const float> x, int64_t images, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < images; ++n)
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t row = 0; row < rows; ++row)
        y[(n * columns + column) * rows + row] = x[(n * rows + row) * columns + column];
}

/// Whether `candidate` replaces `best`. A NaN wins and stays, as in PyTorch.
bool beats(float candidate, float best) { return candidate > best || std::isnan(candidate); }

}  // namespace

void CpuBackend::max_pool2d_forward(Activations out, TensorView<uint8_t> argmax, ConstActivations in, Window window) {
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  const int64_t height = x.size(1), width = x.size(2), channels = x.size(3);
  const int64_t rows = y.size(0) * y.size(1);
  const bool record = argmax.data() != nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t n = row / y.size(1), p = row % y.size(1);
    for (int64_t q = 0; q < y.size(2); ++q) {
      const int64_t output = (row * y.size(2) + q) * channels;
      float* best = y.data() + output;
      std::fill_n(best, channels, -std::numeric_limits<float>::infinity());
      if (record) {
        // If nothing exceeds -infinity, the first element outside the padding wins.
        const int64_t r = std::max<int64_t>(0, window.padding - p * window.stride);
        const int64_t s = std::max<int64_t>(0, window.padding - q * window.stride);
        std::fill_n(argmax.data() + output, channels, static_cast<uint8_t>(r * window.size + s));
      }
      for (int64_t r = 0; r < window.size; ++r) {
        for (int64_t s = 0; s < window.size; ++s) {
          const int64_t h = p * window.stride - window.padding + r, w = q * window.stride - window.padding + s;
          if (h < 0 || h >= height || w < 0 || w >= width) continue;
          const float* pixel = x.data() + ((n * height + h) * width + w) * channels;
          if (record) {
            uint8_t* where = argmax.data() + output;
            const auto position = static_cast<uint8_t>(r * window.size + s);
            for (int64_t c = 0; c < channels; ++c) {
              const bool better = beats(pixel[c], best[c]);
              where[c] = better ? position : where[c];
              best[c] = better ? pixel[c] : best[c];
            }
          } else {
            for (int64_t c = 0; c < channels; ++c) best[c] = beats(pixel[c], best[c]) ? pixel[c] : best[c];
          }
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
  transpose(y.floats(), x.floats(), x.size(0), x.size(1) * x.size(2), x.size(3));
}

void CpuBackend::flatten_backward(Activations dx, ConstActivations dy) {
  transpose(dx.floats(), dy.floats(), dx.size(0), dx.size(3), dx.size(1) * dx.size(2));
}

}  // namespace nibblenet
