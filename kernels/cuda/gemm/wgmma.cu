#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"
#include "kernels/cuda/gemm/wgmma_fit.h"
#include "kernels/cuda/gemm/wgmma_gradient.cuh"
#include "kernels/cuda/gemm/wgmma_launch.cuh"

namespace nibblenet {
namespace {

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
  with_wgmma_columns(s.k, [&]<int columns>() {
    const WgmmaPixelPlan plan(pixels, s.k, columns);
    const f16* rows = f.w.rows_in_fp16();
    const Scratch scratch(workspace, rows == nullptr ? weights : 0, plan.partial_floats);
    BiasEpilogue<AnyElements> epilogue = epilogue_of(any_elements(f.y), f, 1.0F / f.w.normalisation());
    if (rows == nullptr) {
      epilogue = store_rows(scratch.rows, f, stream);
      rows = scratch.rows;
    }
    start_wgmma("wgmma_forward", pixels, FilterRowTiles<columns>{rows, s.k, s.c, s.taps(), s.size},
                {s.outputs(), s.k, nullptr}, ForwardFinish{epilogue}, plan, scratch.partial, work, stream);
  });
}

void wgmma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_data_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const PixelTiles pixels = PixelTiles::contributions(g.dy.fp16().data(), s);
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(g.w.shape().elements()), sizeof(f16));
  with_wgmma_columns(s.c, [&]<int columns>() {
    const WgmmaPixelPlan plan(pixels, s.c, columns);
    const Scratch scratch(workspace, 0, plan.partial_floats);
    start_wgmma("wgmma_data_gradient", pixels,
                FilterColumnTiles<columns>{g.w.rows_in_fp16(), s.k, s.c, s.taps(), s.size}, {s.inputs(), s.c, nullptr},
                GradientFinish{half_gradient(g.dx, g.store), 1.0F / g.w.normalisation()}, plan, scratch.partial, work,
                stream);
  });
}

void wgmma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(wgmma::fits_weight_gradient(g.shape), "wgmma", g.shape);
  const ConvolutionSizes s = sizes_in_lines(g.shape);
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.length(), wgmma_rows)),
                    static_cast<unsigned>(ceil_div(s.k, wgmma_rows)));
  const int k_tiles = ceil_div(s.outputs(), wgmma_depth);
  const WgmmaSplits splits(int64_t{blocks.x} * blocks.y, k_tiles);
  const WeightGradient gradient = weight_gradient_of(g, splits.count, workspace);
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(splits.count)), wgmma_threads,
                  WgmmaRing<GradientColumnTiles, WindowColumnTiles>::bytes};
  launch("wgmma_weight_gradient", weight_gradient_work(s), grid, stream, wgmma_weight_kernel,
         GradientColumnTiles{g.dy.fp16().data(), s.k, s.outputs()}, WindowColumnTiles::of(g.x.fp16().data(), s),
         gradient, k_tiles, splits.k_tiles);
  if (splits.count > 1) add_up_weight_gradient(gradient, splits.count, stream);
}

}  // namespace cuda
}  // namespace nibblenet
