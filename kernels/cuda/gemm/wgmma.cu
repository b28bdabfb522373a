#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/gemm/wgmma_fit.h"

namespace nibblenet {
namespace {

/// A linear layer is a convolution of one image: its rows are the pixels of one line, so that they
/// are cheap to count.
ConvolutionSizes sizes_in_lines(const ProductCase& c) {
  ConvolutionSizes s = c.sizes;
  if (!c.linear) return s;
  s.w = s.q = s.n;
  s.n = 1;
  return s;
}

/// How the reduction is cut: into parts of three k-tiles each at least.
struct Parts {
  int count;
  int steps;  ///< of each

  Parts(int64_t blocks, int all_steps)
      : count(split_k::wgmma.parts(blocks, all_steps / 3)), steps(ceil_div(all_steps, count)) {
    count = ceil_div(all_steps, std::max(steps, 1));
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

/// Calls f.operator()<columns>() with the width of blocks that leaves least of them empty, the
/// widest of several.
template <class F>
void with_columns(int channels, F f) {
  const auto empty = [&](int columns) { return ceil_div(channels, columns) * columns - channels; };
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
      : blocks(int64_t{ceil_div(pixels.pixels(), warpgroup_rows)} * ceil_div(channels, columns)),
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

/// Makes rows of fp16 values of a weight that has none. Returns the epilogue of the product by
/// them.
BiasResult<AnyElements> store_rows(f16* rows, const ForwardProduct& f, Stream& stream) {
  if (f.w.layout() == WeightLayout::superblocks) return cuda::superblock_rows(rows, f, stream);
  BiasResult<AnyElements> of_product;
  const ConvolutionSizes& s = f.shape.sizes;
  const Work work{.bytes = static_cast<double>(f.w.resident().total()) + 2.0 * s.k * s.length()};
  Grid grid = grid_for(int64_t{s.k} * ceil_div(s.length(), 8));
  grid.early = true;
  with_half_operands(any_elements(f.y), f,
                     [&]<class Weights>(const Weights& weights, const BiasResult<AnyElements>& result, float factor) {
                       launch("weight_rows", work, grid, stream, weight_rows_kernel<Weights>, rows, weights, factor);
                       of_product = result;
                     });
  return of_product;
}

}  // namespace

namespace cuda {

void wgmma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits(f.shape), "wgmma", f.shape);
  const ConvolutionSizes s = sizes_in_lines(f.shape);
  const PixelTiles pixels = PixelTiles::windows(f.x.halves().data(), s);
  const size_t weights = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  const Work work = work_of(s, 2.0 * static_cast<double>(weights), sizeof(f16));
  with_columns(s.k, [&]<int columns>() {
    const PixelPlan plan(pixels, s.k, columns);
    const f16* rows = f.w.rows_in_halves();
    const Scratch scratch(workspace, rows == nullptr ? weights : 0, plan.partial_floats);
    BiasResult<AnyElements> result = epilogue_of(any_elements(f.y), f, 1.0F / f.w.normalisation());
    if (rows == nullptr) {
      result = store_rows(scratch.rows, f, stream);
      rows = scratch.rows;
    }
    start("warpgroup_forward", pixels, FilterRowTiles<columns>{rows, s.k, s.c, s.taps(), s.size},
          {s.outputs(), s.k, nullptr}, ForwardFinish{result}, plan, scratch.partial, work, stream);
  });
}

void wgmma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_data_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const PixelTiles pixels = PixelTiles::contributions(g.dy.halves().data(), s);
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(g.w.shape().elements()), sizeof(f16));
  with_columns(s.c, [&]<int columns>() {
    const PixelPlan plan(pixels, s.c, columns);
    const Scratch scratch(workspace, 0, plan.partial_floats);
    start("warpgroup_data_gradient", pixels,
          FilterColumnTiles<columns>{g.w.rows_in_halves(), s.k, s.c, s.taps(), s.size}, {s.inputs(), s.c, nullptr},
          GradientFinish{half_gradient(g.dx, g.store), 1.0F / g.w.normalisation()}, plan, scratch.partial, work,
          stream);
  });
}

void wgmma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_weight_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.length(), warpgroup_rows)),
                    static_cast<unsigned>(ceil_div(s.k, warpgroup_rows)));
  const int steps = ceil_div(s.outputs(), warpgroup_depth);
  const Parts parts(int64_t{blocks.x} * blocks.y, steps);
  const WeightGradient gradient = weight_gradient_of(g, parts.count, workspace);
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(parts.count)), warpgroup_threads,
                  WarpgroupShared<GradientColumnTiles, WindowColumnTiles>::bytes};
  launch("warpgroup_weight_gradient", weight_gradient_work(s), grid, stream, warpgroup_weight_kernel,
         GradientColumnTiles{g.dy.halves().data(), s.k, s.outputs()}, WindowColumnTiles::of(g.x.halves().data(), s),
         gradient, steps, parts.steps);
  if (parts.count > 1) add_up_weight_gradient(gradient, parts.count, stream);
}

}  // namespace cuda
}  // namespace nibblenet
