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

/// A linear layer as one image whose pixels are the rows of x, in one line: pixel indices are cheap
/// to compute.
ConvolutionSizes sizes_in_lines(const ProductCase& c) {
  ConvolutionSizes s = c.sizes;
  if (!c.linear) return s;
  s.w = s.q = s.n;
  s.n = 1;
  return s;
}

/// Split-K: splits of at least three k-tiles each.
struct Splits {
  int count;
  int k_tiles;  ///< of each

  Splits(int64_t blocks, int all_k_tiles)
      : count(split_k::wgmma.splits(blocks, all_k_tiles / 3)), k_tiles(ceil_div(all_k_tiles, count)) {
    count = ceil_div(all_k_tiles, std::max(k_tiles, 1));
  }
};

/// Layout of the workspace: fp16 values of weights, then partial sums.
struct Scratch {
  f16* rows = nullptr;
  float* partial = nullptr;

  Scratch(Workspace& workspace, size_t fp16, size_t floats) {
    const size_t rows_in_floats = ceil_div(fp16, 8) * 4;
    if (rows_in_floats + floats == 0) return;
    float* memory = workspace.floats(rows_in_floats + floats);
    rows = reinterpret_cast<f16*>(memory);
    partial = memory + rows_in_floats;
  }
};

/// Calls f.operator()<columns>() with the block width that wastes the fewest columns, the widest of
/// several.
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

/// Blocks and splits of a product over pixels.
struct PixelPlan {
  int64_t blocks;
  Splits splits;
  size_t partial_floats;

  PixelPlan(const PixelTiles& pixels, int channels, int columns)
      : blocks(int64_t{ceil_div(pixels.pixels(), wgmma_rows)} * ceil_div(channels, columns)),
        splits(blocks, pixels.k_tiles()),
        partial_floats(splits.count > 1 ? static_cast<size_t>(splits.count) * static_cast<size_t>(pixels.pixels()) *
                                              static_cast<size_t>(channels)
                                        : 0) {}
};

template <class Filters, class Finish>
void start(const char* name, const PixelTiles& pixels, const Filters& w, PixelEpilogue epilogue, const Finish& finish,
           const PixelPlan& plan, float* partial, const Work& work, Stream& stream) {
  if (plan.splits.count > 1) epilogue.partial = partial;
  const Grid grid{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits.count)), wgmma_threads,
                  WgmmaShared<PixelTiles, Filters>::bytes, true};
  launch(name, work, grid, stream, wgmma_pixel_kernel<Filters, Finish>, pixels, w, epilogue, finish, pixels.k_tiles(),
         plan.splits.k_tiles);
  if (plan.splits.count == 1) return;
  Grid sums = grid_for(int64_t{epilogue.pixels} * epilogue.channels / 8, 128);
  sums.pdl = true;
  launch("wgmma_splits", {}, sums, stream, sum_pixel_splits_kernel<Finish>, epilogue, finish, plan.splits.count);
}

/// Expands a weight to rows of fp16 values. Returns the epilogue of the product by them.
BiasEpilogue<AnyElements> store_rows(f16* rows, const ForwardProduct& f, Stream& stream) {
  if (f.w.layout() == WeightLayout::superblocks) return cuda::superblock_rows(rows, f, stream);
  if (f.w.layout() == WeightLayout::strings) return cuda::string_rows(rows, f, stream);
  BiasEpilogue<AnyElements> of_product;
  const ConvolutionSizes& s = f.shape.sizes;
  const Work work{.bytes = static_cast<double>(f.w.resident().total()) + 2.0 * s.k * s.length()};
  Grid grid = grid_for(int64_t{s.k} * ceil_div(s.length(), 8));
  grid.pdl = true;
  with_half_operands(
      any_elements(f.y), f,
      [&]<class Weights>(const Weights& weights, const BiasEpilogue<AnyElements>& epilogue, float factor) {
        launch("weight_rows", work, grid, stream, weight_rows_kernel<Weights>, rows, weights, factor);
        of_product = epilogue;
      });
  return of_product;
}

}  // namespace

namespace cuda {

void wgmma_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits(f.shape), "wgmma", f.shape);
  const ConvolutionSizes s = sizes_in_lines(f.shape);
  const PixelTiles pixels = PixelTiles::windows(f.x.fp16().data(), s);
  const size_t weights = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  const Work work = work_of(s, 2.0 * static_cast<double>(weights), sizeof(f16));
  with_columns(s.k, [&]<int columns>() {
    const PixelPlan plan(pixels, s.k, columns);
    const f16* rows = f.w.rows_in_fp16();
    const Scratch scratch(workspace, rows == nullptr ? weights : 0, plan.partial_floats);
    BiasEpilogue<AnyElements> epilogue = epilogue_of(any_elements(f.y), f, 1.0F / f.w.normalisation());
    if (rows == nullptr) {
      epilogue = store_rows(scratch.rows, f, stream);
      rows = scratch.rows;
    }
    start("wgmma_forward", pixels, FilterRowTiles<columns>{rows, s.k, s.c, s.taps(), s.size},
          {s.outputs(), s.k, nullptr}, ForwardFinish{epilogue}, plan, scratch.partial, work, stream);
  });
}

void wgmma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_data_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const PixelTiles pixels = PixelTiles::contributions(g.dy.fp16().data(), s);
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(g.w.shape().elements()), sizeof(f16));
  with_columns(s.c, [&]<int columns>() {
    const PixelPlan plan(pixels, s.c, columns);
    const Scratch scratch(workspace, 0, plan.partial_floats);
    start("wgmma_data_gradient", pixels, FilterColumnTiles<columns>{g.w.rows_in_fp16(), s.k, s.c, s.taps(), s.size},
          {s.inputs(), s.c, nullptr}, GradientFinish{half_gradient(g.dx, g.store), 1.0F / g.w.normalisation()}, plan,
          scratch.partial, work, stream);
  });
}

void wgmma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_weight_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.length(), wgmma_rows)),
                    static_cast<unsigned>(ceil_div(s.k, wgmma_rows)));
  const int k_tiles = ceil_div(s.outputs(), wgmma_depth);
  const Splits splits(int64_t{blocks.x} * blocks.y, k_tiles);
  const WeightGradient gradient = weight_gradient_of(g, splits.count, workspace);
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(splits.count)), wgmma_threads,
                  WgmmaShared<GradientColumnTiles, WindowColumnTiles>::bytes};
  launch("wgmma_weight_gradient", weight_gradient_work(s), grid, stream, wgmma_weight_kernel,
         GradientColumnTiles{g.dy.fp16().data(), s.k, s.outputs()}, WindowColumnTiles::of(g.x.fp16().data(), s),
         gradient, k_tiles, splits.k_tiles);
  if (splits.count > 1) add_up_weight_gradient(gradient, splits.count, stream);
}

}  // namespace cuda
}  // namespace nibblenet
