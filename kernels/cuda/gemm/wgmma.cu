#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"

namespace nibblenet {
namespace {

int tiles(int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

/// A linear layer is a convolution of one image: its rows are the pixels of one line, so that they are cheap to count.
ConvolutionSizes as_one_image(ConvolutionSizes s) {
  if (s.size != 1 || s.p != 1 || s.q != 1) return s;
  s.w = s.q = s.n;
  s.n = 1;
  return s;
}

/// How many steps a block takes: the reduction is cut into as many parts as bring two blocks to each multiprocessor of
/// a large GPU, of three steps each at least. A matter of the shapes alone, so that results are.
struct Parts {
  int count;
  int steps;  ///< of each

  Parts(int64_t blocks, int all_steps) {
    constexpr int64_t blocks_wanted = 264;
    constexpr int64_t most = 64;
    const int64_t wanted = std::min(blocks_wanted / std::max<int64_t>(blocks, 1), int64_t{all_steps} / 3);
    steps = tiles(all_steps, static_cast<int>(std::clamp<int64_t>(wanted, 1, most)));
    count = tiles(all_steps, std::max(steps, 1));
  }
};

/// Where halves of weights and partial sums lie in the workspace.
struct Scratch {
  f16* rows = nullptr;
  float* partial = nullptr;

  Scratch(Workspace& workspace, size_t halves, size_t floats) {
    const size_t rows_in_floats = (halves + 7) / 8 * 4;
    if (rows_in_floats + floats == 0) return;
    float* memory = workspace.floats(rows_in_floats + floats);
    rows = reinterpret_cast<f16*>(memory);
    partial = memory + rows_in_floats;
  }
};

/// Calls f.operator()<columns>() with the width of blocks that leaves least of them empty, the widest of several.
template <class F>
void with_columns(int channels, F f) {
  const auto empty = [&](int columns) { return tiles(channels, columns) * columns - channels; };
  if (empty(128) <= empty(96) && empty(128) <= empty(64))
    f.template operator()<128>();
  else if (empty(96) <= empty(64))
    f.template operator()<96>();
  else
    f.template operator()<64>();
}

/// Steps of a product over pixels, and how they are cut.
struct PixelPlan {
  int64_t blocks;
  Parts parts;
  size_t partial_floats;

  PixelPlan(const PixelTiles& pixels, int channels, int columns)
      : blocks(int64_t{tiles(pixels.pixels(), warpgroup_rows)} * tiles(channels, columns)),
        parts(blocks, pixels.steps()),
        partial_floats(parts.count > 1 ? static_cast<size_t>(parts.count) * static_cast<size_t>(pixels.pixels()) *
                                             static_cast<size_t>(channels)
                                       : 0) {}
};

template <class Filters, class Finish>
void start(const char* name, const PixelTiles& pixels, const Filters& w, PixelResult result, const Finish& finish,
           const PixelPlan& plan, float* partial, const Work& work, Stream& stream) {
  if (plan.parts.count > 1) result.partial = partial;
  const Grid grid{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.parts.count)), warpgroup_threads,
                  WarpgroupShared<PixelTiles, Filters>::bytes, true};
  launch(name, work, grid, stream, warpgroup_pixel_kernel<Filters, Finish>, pixels, w, result, finish, pixels.steps(),
         plan.parts.steps);
  if (plan.parts.count == 1) return;
  Grid sums = grid_for(int64_t{result.pixels} * result.channels / 8, 128);
  sums.early = true;
  launch("warpgroup_parts", {}, sums, stream, sum_pixel_parts_kernel<Finish>, result, finish, plan.parts.count);
}

/// Rows of halves of a weight that has none, and what the product by them does at its end.
BiasResult<AnyElements> store_rows(f16* rows, Activations y, const WeightCuda& w, TensorView<const float> bias,
                                   const ConvolutionSizes& s, Epilogue epilogue, Stream& stream) {
  if (w.layout() == WeightLayout::superblocks) return cuda::superblock_rows(rows, y, w, bias, s, epilogue, stream);
  BiasResult<AnyElements> of_product;
  const int64_t pieces = int64_t{s.k} * tiles(s.length(), 8);
  const Work work{.bytes = static_cast<double>(w.resident().total()) + 2.0 * s.k * s.length()};
  Grid grid = grid_for(pieces);
  grid.early = true;
  with_half_operands(AnyElements{y.data(), true}, w, bias.data(), s, epilogue == Epilogue::relu,
                     [&]<class Weights>(const Weights& weights, const BiasResult<AnyElements>& result, float factor) {
                       launch("weight_rows", work, grid, stream, weight_rows_kernel<Weights>, rows, weights, factor);
                       of_product = result;
                     });
  return of_product;
}

bool forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
             const ConvolutionSizes& s, Epilogue epilogue, Workspace& workspace, Stream& stream) {
  if (x.precision() != Precision::float16 || y.precision() != Precision::float16 || s.c % 8 != 0 || s.k % 8 != 0 ||
      s.outputs() == 0 || w.form() == WeightCuda::Form::float32 || !on_16_bytes(x.data()) || !on_16_bytes(y.data()))
    return false;
  const PixelTiles pixels = PixelTiles::windows(x.halves().data(), s);
  const size_t weights = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  const Work work = work_of(s, 2.0 * static_cast<double>(weights), sizeof(f16));
  with_columns(s.k, [&]<int columns>() {
    const PixelPlan plan(pixels, s.k, columns);
    const f16* rows = w.rows_in_halves();
    const Scratch scratch(workspace, rows == nullptr ? weights : 0, plan.partial_floats);
    BiasResult<AnyElements> result{{y.data(), true},          bias.data(), s.k, s.outputs(), 1.0F / w.normalisation(),
                                   epilogue == Epilogue::relu};
    if (rows == nullptr) {
      result = store_rows(scratch.rows, y, w, bias, s, epilogue, stream);
      rows = scratch.rows;
    }
    start("warpgroup_forward", pixels, FilterRowTiles<columns>{rows, s.k, s.c, s.taps(), s.size},
          {s.outputs(), s.k, nullptr}, ForwardFinish{result}, plan, scratch.partial, work, stream);
  });
  return true;
}

bool data_gradient(Activations dx, ConstActivations dy, const WeightCuda& w, const ConvolutionSizes& s,
                   const GradientStore& store, Workspace& workspace, Stream& stream) {
  if (dy.precision() != Precision::float16 || w.rows_in_halves() == nullptr || s.stride != 1 || s.c % 8 != 0 ||
      s.k % 8 != 0 || s.inputs() == 0 || !fits_half_gradient(dx, store) || !on_16_bytes(dy.data()))
    return false;
  const PixelTiles pixels = PixelTiles::contributions(dy.halves().data(), s);
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(w.shape().elements()), sizeof(f16));
  with_columns(s.c, [&]<int columns>() {
    const PixelPlan plan(pixels, s.c, columns);
    const Scratch scratch(workspace, 0, plan.partial_floats);
    start("warpgroup_data_gradient", pixels, FilterColumnTiles<columns>{w.rows_in_halves(), s.k, s.c, s.taps(), s.size},
          {s.inputs(), s.c, nullptr}, GradientFinish{half_gradient(dx, store), 1.0F / w.normalisation()}, plan,
          scratch.partial, work, stream);
  });
  return true;
}

bool weight_gradient(ParameterGradients result, ConstActivations dy, ConstActivations x, const ConvolutionSizes& s,
                     Workspace& workspace, Stream& stream) {
  if (dy.precision() != Precision::float16 || s.k % 8 != 0 || s.c % 8 != 0 || s.length() == 0 || s.outputs() == 0 ||
      !on_16_bytes(dy.data()) || !on_16_bytes(x.data()))
    return false;
  result.filters = s.k;
  result.channels = s.c;
  result.taps = s.taps();
  WeightGradient gradient{result};
  const dim3 blocks(static_cast<unsigned>(tiles(s.length(), warpgroup_rows)),
                    static_cast<unsigned>(tiles(s.k, warpgroup_rows)));
  const int steps = tiles(s.outputs(), warpgroup_depth);
  const Parts parts(int64_t{blocks.x} * blocks.y, steps);
  const auto count = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  if (parts.count > 1) {
    gradient.partial = workspace.floats(static_cast<size_t>(parts.count) * (count + static_cast<size_t>(s.k)));
    gradient.partial_bias = gradient.partial + static_cast<size_t>(parts.count) * count;
  }
  const Work work = work_of(s, static_cast<double>(sizeof(float)) * static_cast<double>(count), sizeof(f16));
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(parts.count)), warpgroup_threads,
                  WarpgroupShared<GradientColumnTiles, WindowColumnTiles>::bytes};
  launch("warpgroup_weight_gradient", work, grid, stream, warpgroup_weight_kernel,
         GradientColumnTiles{dy.halves().data(), s.k, s.outputs()}, WindowColumnTiles::of(x.halves().data(), s),
         gradient, steps, parts.steps);
  if (parts.count > 1) add_up_weight_gradient(gradient, parts.count, stream);
  return true;
}

ConvolutionSizes linear_sizes(const Shape& x, const Shape& y) {
  return as_one_image(sizes_of(as_images(x), as_images(y), {}));
}

}  // namespace

namespace cuda {

bool warpgroup_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                              Window window, Epilogue epilogue, Workspace& workspace, Stream& stream) {
  return forward(y, x, w, bias, sizes_of(x.shape(), y.shape(), window), epilogue, workspace, stream);
}

bool warpgroup_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                              Epilogue epilogue, Workspace& workspace, Stream& stream) {
  return forward(y, x, w, bias, linear_sizes(x.shape(), y.shape()), epilogue, workspace, stream);
}

bool warpgroup_conv2d_backward_data(Activations dx, ConstActivations dy, const WeightCuda& w, Window window,
                                    const GradientStore& store, Workspace& workspace, Stream& stream) {
  return data_gradient(dx, dy, w, sizes_of(dx.shape(), dy.shape(), window), store, workspace, stream);
}

bool warpgroup_linear_backward_data(Activations dx, ConstActivations dy, const WeightCuda& w,
                                    const GradientStore& store, Workspace& workspace, Stream& stream) {
  return data_gradient(dx, dy, w, linear_sizes(dx.shape(), dy.shape()), store, workspace, stream);
}

bool warpgroup_weight_gradient(const ParameterGradients& result, ConstActivations dy, ConstActivations x,
                               const ConvolutionSizes& sizes, Workspace& workspace, Stream& stream) {
  return weight_gradient(result, dy, x, as_one_image(sizes), workspace, stream);
}

}  // namespace cuda
}  // namespace nibblenet
