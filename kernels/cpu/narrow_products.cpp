#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/narrow_weight.h"

namespace nibblenet {
namespace {

/// Groups that are unpacked at once: 16 KB of a panel, half a first-level cache.
constexpr int64_t chunk_groups = 64;
constexpr size_t chunk_bytes = 4 * static_cast<size_t>(chunk_groups * panel_channels);

constexpr int64_t on_cache_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// The share [begin, end) of `count` units of the calling thread of a parallel region.
struct Share {
  int64_t begin;
  int64_t end;
  explicit Share(int64_t count)
      : begin(count * omp_get_thread_num() / omp_get_num_threads()),
        end(count * (omp_get_thread_num() + 1) / omp_get_num_threads()) {}
};

/// Makes values of products from the inputs of images, and keeps what their sums are multiplied by.
class InputRounder {
 public:
  InputRounder(const NarrowWeightCpu& w, ConstActivations x)
      : w_(w),
        x_(x),
        image_(x.shape().inner_elements()),
        scales_(static_cast<size_t>(x.size(0)), ByteScale{.step = 1.0F}),
        wrong_(static_cast<size_t>(x.size(0))) {
    if (!in_bytes()) return;
    const std::optional<ByteScale> scale = w.byte_scale();
    if (!scale) throw Error("a product that takes no bytes got some");
    if (x.form().scale.most > scale->most)
      fail<Error>("a product of bytes up to {} got bytes up to {}", scale->most, x.form().scale.most);
  }

  /// Finds an image's step. Call it before round().
  void begin(int64_t image) {
    if (w_.product_precision() != Precision::int8) return;
    const auto i = static_cast<size_t>(image);
    if (in_bytes()) {
      scales_[i] = x_.form().scale;
      wrong_[i] = x_.form().invalid[image] != 0;
      return;
    }
    const InputRange& range = w_.input();
    const float largest = range.largest > 0 ? range.largest : largest_magnitude(floats(image), image_);
    scales_[i] = range.scale(std::isfinite(largest) ? largest : 0.0F);
  }
  /// Rounds inputs [first, first + count) of an image, on any thread.
  void round(int64_t image, int64_t first, int64_t count, std::byte* out) {
    if (in_bytes()) return w_.kernels().widen(x_.bytes().data() + image * image_ + first, count, out);
    const auto [step, most] = scales_[static_cast<size_t>(image)];
    const bool finite = w_.kernels().round({.x = floats(image) + first,
                                            .count = count,
                                            .inverse = step > 0.0F ? 1.0F / step : 0.0F,
                                            .is_signed = w_.input().is_signed,
                                            .most = most,
                                            .out = out});
    if (!finite) wrong_[static_cast<size_t>(image)].store(true, std::memory_order_relaxed);
  }
  /// What an image's sums are multiplied by: NaN if an input was NaN or infinite, as no byte is.
  float factor(int64_t image) const {
    const auto i = static_cast<size_t>(image);
    return wrong_[i].load(std::memory_order_relaxed) ? std::numeric_limits<float>::quiet_NaN() : scales_[i].step;
  }

 private:
  bool in_bytes() const { return x_.precision() == Precision::int8; }
  const float* floats(int64_t image) const { return x_.floats().data() + image * image_; }

  const NarrowWeightCpu& w_;
  ConstActivations x_;
  int64_t image_;  ///< its inputs
  std::vector<ByteScale> scales_;
  std::vector<std::atomic<bool>> wrong_;
};

/// Writes the outputs of pixels from their sums. Each thread has its own.
class Finisher {
 public:
  Finisher(const NarrowWeightCpu& w, const float* bias, Epilogue epilogue, Activations y)
      : w_(w),
        bias_(bias),
        relu_(epilogue == Epilogue::relu),
        form_(y.form()),
        floats_(y.precision() == Precision::int8 ? nullptr : y.floats().data()),
        bytes_(y.precision() == Precision::int8 ? y.bytes().data() : nullptr),
        inverse_(bytes_ != nullptr ? 1.0F / form_.scale.step : 0.0F) {}

  /// Pixels first, first + step, ... of an image, numbered through all images. Their sums are
  /// multiplied by `factor`.
  struct Pixels {
    int64_t image;
    float factor;
    int64_t first, count;
    int64_t step = 1;
  };
  /// Writes a panel's channels of some pixels. `corrections`: what is subtracted from their sums
  /// [panel_channels], or null.
  void write(const void* sums, int64_t panel, const int32_t* corrections, const Pixels& pixels) {
    if (panel_ != panel) w_.factors(panel, factors_);
    panel_ = panel;
    const int64_t channels = w_.layout().channels, at = pixels.first * channels + panel * panel_channels;
    const bool finite = w_.kernels().finish({.pixels = pixels.count,
                                             .sums = sums,
                                             .factors = factors_,
                                             .corrections = corrections,
                                             .bias = bias_ + panel * panel_channels,
                                             .image = pixels.factor,
                                             .channels = w_.layout().real_width(panel),
                                             .relu = relu_,
                                             .stride = pixels.step * channels,
                                             .y = floats_ != nullptr ? floats_ + at : nullptr,
                                             .bytes = bytes_ != nullptr ? bytes_ + at : nullptr,
                                             .inverse = inverse_,
                                             .most = form_.scale.most});
    if (!finite) std::atomic_ref(form_.invalid[pixels.image]).store(1, std::memory_order_relaxed);
  }

 private:
  const NarrowWeightCpu& w_;
  const float* bias_;
  bool relu_;
  ByteForm<uint8_t> form_;
  float* floats_;  ///< one of these two is y's data
  uint8_t* bytes_;
  float inverse_;
  int64_t panel_ = -1;  ///< whose factors these are
  float factors_[panel_channels];
};

/// Begins to write y: no image is invalid yet.
void begin_output(Activations y) {
  if (y.precision() == Precision::int8) std::fill_n(y.form().invalid, y.size(0), uint8_t{0});
}

constexpr int64_t block_images = 22 * tile_pixels;  ///< whose sums a thread keeps: 33 KB

/// y[n] of a panel for images [first, first + count), at most block_images. Codes are unpacked
/// chunk by chunk, and used from the first-level cache.
void linear_block(const NarrowWeightCpu& w, Finisher& finisher, int64_t panel, const std::byte* x, int64_t x_bytes,
                  int64_t first, int64_t count, const InputRounder& rounder) {
  alignas(64) int32_t sums[block_images * panel_channels];
  alignas(64) std::byte chunk[chunk_bytes];
  const int64_t groups = w.layout().depth() / w.layout().group;
  for (int64_t g = 0; g < groups; g += chunk_groups) {
    const int64_t now = std::min(chunk_groups, groups - g);
    const std::byte* values = chunk;
    if (w.unpacked())
      values = w.unpacked_panel(panel, g);
    else
      w.unpack(panel, g, now, chunk);
    for (int64_t n = 0; n < count; n += tile_pixels) {
      TileWork tile{.x = {},
                    .rows = 1,
                    .row_bytes = 0,
                    .groups = now,
                    .last_group = -1,
                    .panel = values,
                    .panel_gap = 0,
                    .width = w.layout().width(panel),
                    .sums = sums + n * panel_channels,
                    .add = g > 0};
      const int64_t images = std::min(tile_pixels, count - n);
      for (int64_t i = 0; i < images; ++i) tile.x[i] = x + (first + n + i) * x_bytes + 4 * g;
      w.kernels().tile(tile, images);
    }
  }
  for (int64_t n = first; n < first + count; ++n)
    finisher.write(sums + (n - first) * panel_channels, panel, w.corrections(panel),
                   {.image = n, .factor = rounder.factor(n), .first = n, .count = 1});
}

/// A convolution's input as rounded pixels, with its padding.
struct PaddedInput {
  int64_t height, width, padding;
  int64_t inputs, value_bytes;
  int zero;  ///< the byte that stands for 0

  int64_t pixel_bytes() const { return inputs * value_bytes; }
  int64_t row_bytes() const { return (width + 2 * padding) * pixel_bytes(); }
  int64_t rows() const { return height + 2 * padding; }
  /// The last window row may be read up to a granule beyond the image.
  int64_t bytes() const { return rows() * row_bytes() + row_granule * value_bytes; }

  void fill(std::byte* out, int64_t pixels) const {
    std::memset(out, zero, static_cast<size_t>(pixels * pixel_bytes()));
  }
  /// Writes row `h` of a padded image.
  void write_row(int64_t image, int64_t h, InputRounder& rounder, std::byte* row) const {
    if (h < padding || h >= height + padding) return fill(row, width + 2 * padding);
    fill(row, padding);
    rounder.round(image, (h - padding) * width * inputs, width * inputs, row + padding * pixel_bytes());
    fill(row + (padding + width) * pixel_bytes(), padding);
  }
};

/// A convolution in units [panel][tile of pixels] of each image.
struct DirectConvolution {
  const NarrowWeightCpu& w;
  const PaddedInput& input;
  Window window;
  int64_t pixels, columns;  ///< of an output image, and of its rows

  /// Bytes of a rounded row and image, of the panels of codes, and what a thread needs.
  int64_t row_bytes() const { return input.row_bytes(); }
  int64_t image_bytes() const { return input.bytes(); }
  int64_t panels_bytes() const { return w.unpacked() ? 0 : w.layout().values() * w.kernels().value_bytes(); }
  static int64_t scratch_bytes() { return 0; }

  /// Unpacks the calling thread's share of all panels.
  void unpack_share(std::byte* panels) const {
    if (w.unpacked()) return;
    const PanelLayout& layout = w.layout();
    const int64_t groups = layout.depth() / layout.group;
    const int64_t chunks = (groups + chunk_groups - 1) / chunk_groups;
    const Share share(layout.panels() * chunks);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t panel = i / chunks, g = i % chunks * chunk_groups;
      w.unpack(panel, g, std::min(chunk_groups, groups - g),
               panels + layout.offset(panel) * w.kernels().value_bytes() + g * 4 * layout.width(panel));
    }
  }
  void write_row(int64_t image, int64_t h, InputRounder& rounder, std::byte*, std::byte* row) const {
    input.write_row(image, h, rounder, row);
  }

  int64_t tiles() const { return (pixels + tile_pixels - 1) / tile_pixels; }
  int64_t units_of_image() const { return w.layout().panels() * tiles(); }
  /// Groups of a window row, and the bits of the last one that hold values.
  int64_t groups() const { return (row_values() + w.layout().group - 1) / w.layout().group; }
  int32_t last_group() const {
    const int64_t missing = groups() * w.layout().group - row_values();
    return static_cast<int32_t>(~uint32_t{0} >> 8 * missing * w.kernels().value_bytes());
  }
  int64_t row_values() const { return w.layout().columns * w.layout().inputs; }

  /// Computes a unit of image n, whose rounded input is `x`. `panels`: the unpacked codes.
  void run(int64_t unit, int64_t n, const std::byte* x, const std::byte* panels, float factor,
           Finisher& finisher) const {
    alignas(64) int32_t sums[tile_pixels * panel_channels];
    const PanelLayout& layout = w.layout();
    if (w.unpacked()) panels = w.unpacked_panel(0, 0);
    const int64_t panel = unit / tiles(), first = unit % tiles() * tile_pixels;
    const int64_t count = std::min(tile_pixels, pixels - first);
    TileWork tile{.x = {},
                  .rows = window.size,
                  .row_bytes = input.row_bytes(),
                  .groups = groups(),
                  .last_group = last_group(),
                  .panel = panels + layout.offset(panel) * w.kernels().value_bytes(),
                  .panel_gap = 4 * layout.width(panel) * (layout.padded_row() / layout.group - groups()),
                  .width = layout.width(panel),
                  .sums = sums,
                  .add = false};
    int64_t row = first / columns, column = first % columns;
    for (int64_t i = 0; i < count; ++i) {
      tile.x[i] = x + window.stride * (row * input.row_bytes() + column * input.pixel_bytes());
      if (++column == columns) column = 0, ++row;
    }
    w.kernels().tile(tile, count);
    finisher.write(sums, panel, w.corrections(panel),
                   {.image = n, .factor = factor, .first = n * pixels + first, .count = count});
  }
};

/// A convolution with a stride of 1 by minimal filtering (kernels/cpu/minimal_filtering.h), in
/// units [panel][tile of pairs] of each image. Rows of the padded image become factors of pairs of
/// columns, [pair][factor][channel]. A panel is [window row][factor][group of channels][output
/// channel][value of the group].
struct FilteredConvolution {
  const NarrowWeightCpu& w;
  const PaddedInput& input;
  int64_t rows, columns;  ///< of an output image

  const PanelLayout& layout() const { return w.layout(); }
  int64_t factors() const { return pair_factors(layout().columns); }
  int64_t own() const { return own_factors(layout().columns); }
  /// Pairs of a row, and bytes of a pair's factor, of a pair, of a row and of an image.
  int64_t pairs() const { return (columns + 1) / 2; }
  int64_t factor_bytes() const { return input.pixel_bytes(); }
  int64_t pair_bytes() const { return factors() * factor_bytes(); }
  int64_t row_bytes() const { return pairs() * pair_bytes(); }
  int64_t image_bytes() const { return input.rows() * row_bytes(); }
  /// A thread's padded row, whose last pair is whole.
  int64_t scratch_bytes() const { return (2 * pairs() + layout().columns - 1) * input.pixel_bytes(); }
  /// Bytes of a factor in a panel, of a panel, and of all of them.
  int64_t factor_bytes(int64_t panel) const { return factor_bytes() * layout().width(panel); }
  int64_t panel_bytes(int64_t panel) const { return layout().rows * factors() * factor_bytes(panel); }
  int64_t panels_bytes() const { return (layout().panels() - 1) * panel_bytes(0) + panel_bytes(layout().panels() - 1); }

  int64_t tiles() const { return (rows * pairs() + tile_pixels - 1) / tile_pixels; }
  int64_t units_of_image() const { return layout().panels() * tiles(); }

  /// Unpacks the calling thread's share of all panels.
  void unpack_share(std::byte* panels) const {
    const int64_t groups = layout().inputs / layout().group;
    const int64_t pieces = (groups + NarrowWeightCpu::filtered_groups - 1) / NarrowWeightCpu::filtered_groups;
    const Share share(layout().panels() * layout().rows * pieces);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t panel = i / pieces / layout().rows, row = i / pieces % layout().rows;
      const int64_t first = i % pieces * NarrowWeightCpu::filtered_groups, bytes = factor_bytes(panel);
      w.unpack_filtered(panel, row, first, std::min(NarrowWeightCpu::filtered_groups, groups - first),
                        panels + panel * panel_bytes(0) + row * factors() * bytes + first * 4 * layout().width(panel),
                        bytes);
    }
  }

  /// Writes the factors of row `h` of a padded image. `padded`: scratch_bytes(), zeros behind the
  /// row.
  void write_row(int64_t image, int64_t h, InputRounder& rounder, std::byte* padded, std::byte* row) const {
    input.write_row(image, h, rounder, padded);
    w.filter(1)->inputs(padded, pairs(), layout().inputs, row);
  }

  /// Computes a unit [panel][tile of pairs] of image n, whose factors are `x`.
  void run(int64_t unit, int64_t n, const std::byte* x, const std::byte* panels, float factor,
           Finisher& finisher) const {
    struct alignas(64) Sums {
      int32_t of[tile_pixels * panel_channels];
    };
    Sums even, odd, both;
    const int64_t panel = unit / tiles(), tile = unit % tiles();
    const int64_t first = rows * pairs() * tile / tiles(), count = rows * pairs() * (tile + 1) / tiles() - first;
    const auto multiply = [&](int64_t begin, int64_t taken, Sums& sums, bool add) {
      TileWork work{.x = {},
                    .rows = layout().rows,
                    .row_bytes = row_bytes(),
                    .groups = taken * layout().inputs / layout().group,
                    .last_group = -1,
                    .panel = panels + panel * panel_bytes(0) + begin * factor_bytes(panel),
                    .panel_gap = (factors() - taken) * factor_bytes(panel),
                    .width = layout().width(panel),
                    .sums = sums.of,
                    .add = add};
      for (int64_t i = 0; i < count; ++i)
        work.x[i] =
            x + (first + i) / pairs() * row_bytes() + (first + i) % pairs() * pair_bytes() + begin * factor_bytes();
      w.kernels().tile(work, count);
    };
    const bool has_both = factors() > 2 * own() + 2;
    multiply(2 * own(), 1, even, false);
    multiply(2 * own() + 1, 1, odd, false);
    if (has_both) multiply(2 * own() + 2, 1, both, false);
    for (int64_t at = 0; at < count * panel_channels; at += panel_channels)  // a narrower panel has fewer sums
      w.filter(1)->sums(even.of + at, odd.of + at, has_both ? both.of + at : nullptr, layout().width(panel));
    multiply(0, own(), even, true);
    multiply(own(), own(), odd, true);
    for (int64_t i = 0; i < count;) {  // row by row
      const int64_t row = (first + i) / pairs(), pair = (first + i) % pairs();
      const int64_t now = std::min(count - i, pairs() - pair);
      const int64_t pixel = (n * rows + row) * columns + 2 * pair;
      const int64_t odd_pixels = std::min(now, columns / 2 - pair);
      finisher.write(even.of + i * panel_channels, panel, w.filter_corrections(panel, false),
                     {.image = n, .factor = factor, .first = pixel, .count = now, .step = 2});
      finisher.write(odd.of + i * panel_channels, panel, w.filter_corrections(panel, true),
                     {.image = n, .factor = factor, .first = pixel + 1, .count = odd_pixels, .step = 2});
      i += now;
    }
  }
};

}  // namespace

void CpuBackend::narrow_linear_forward(Activations y, ConstActivations x, const NarrowWeightCpu& w,
                                       TensorView<const float> bias, Epilogue epilogue) {
  const PanelLayout& layout = w.layout();
  const int64_t batch = x.size(0), x_bytes = layout.depth() * w.kernels().value_bytes();
  auto* rounded = reinterpret_cast<std::byte*>(workspace(static_cast<size_t>(batch * x_bytes + 3) / sizeof(float)));
  InputRounder rounder(w, x);
  begin_output(y);
#pragma omp parallel num_threads(threads_)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < batch; ++n) {
      rounder.begin(n);
      rounder.round(n, 0, layout.inputs, rounded + n * x_bytes);
      const int64_t bytes = layout.inputs * w.kernels().value_bytes();
      std::memset(rounded + n * x_bytes + bytes, 0, static_cast<size_t>(x_bytes - bytes));
    }
    Finisher finisher(w, bias.data(), epilogue, y);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < layout.panels(); ++panel)
      for (int64_t n = 0; n < batch; n += block_images)
        linear_block(w, finisher, panel, rounded, x_bytes, n, std::min(block_images, batch - n), rounder);
  }
}

/// Rounds some images into padded copies, and computes tiles from these. Panels are unpacked once,
/// and stay in the second-level cache.
void CpuBackend::narrow_conv2d_forward(Activations y, ConstActivations x, const NarrowWeightCpu& w,
                                       TensorView<const float> bias, Window window, Epilogue epilogue) {
  constexpr int64_t rounded_bytes = 2 << 20;  // of images at once
  const NarrowKernels& kernels = w.kernels();
  const bool shifted = w.product_precision() == Precision::int8 && w.input().is_signed;
  const PaddedInput input{.height = x.size(1),
                          .width = x.size(2),
                          .padding = window.padding,
                          .inputs = w.layout().inputs,
                          .value_bytes = kernels.value_bytes(),
                          .zero = shifted ? kernels.signed_zero : 0};
  const int64_t batch = x.size(0);
  InputRounder rounder(w, x);
  begin_output(y);
  const auto convolve = [&](const auto& convolution) {
    const int64_t chunk =
        std::clamp(rounded_bytes / convolution.image_bytes(), std::min<int64_t>(threads_, batch), batch);
    const int64_t panels_bytes = on_cache_line(convolution.panels_bytes());
    const int64_t scratch_bytes = on_cache_line(convolution.scratch_bytes());
    const int64_t bytes = panels_bytes + threads_ * scratch_bytes + chunk * convolution.image_bytes();
    auto* const panels = reinterpret_cast<std::byte*>(workspace(static_cast<size_t>(bytes + 3) / sizeof(float)));
    std::byte* const rounded = panels + panels_bytes + threads_ * scratch_bytes;
#pragma omp parallel num_threads(threads_)
    {
      convolution.unpack_share(panels);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < batch; ++n) rounder.begin(n);
      std::byte* const scratch = panels + panels_bytes + omp_get_thread_num() * scratch_bytes;
      std::memset(scratch, 0, static_cast<size_t>(scratch_bytes));
      Finisher finisher(w, bias.data(), epilogue, y);
      for (int64_t first = 0; first < batch; first += chunk) {
        const int64_t images = std::min(chunk, batch - first);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < images * input.rows(); ++row) {
          const int64_t n = row / input.rows(), h = row % input.rows();
          convolution.write_row(first + n, h, rounder, scratch,
                                rounded + n * convolution.image_bytes() + h * convolution.row_bytes());
        }
        const Share share(images * convolution.units_of_image());
        for (int64_t unit = share.begin; unit < share.end; ++unit) {
          const int64_t n = unit / convolution.units_of_image();
          convolution.run(unit % convolution.units_of_image(), first + n, rounded + n * convolution.image_bytes(),
                          panels, rounder.factor(first + n), finisher);
        }
#pragma omp barrier
      }
    }
  };
  if (w.filter(window.stride) != nullptr)
    convolve(FilteredConvolution{w, input, y.size(1), y.size(2)});
  else
    convolve(DirectConvolution{w, input, window, y.size(1) * y.size(2), y.size(2)});
}

}  // namespace nibblenet
