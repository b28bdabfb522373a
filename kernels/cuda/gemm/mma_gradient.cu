#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/gemm/mma_gradient.cuh"

namespace nibblenet {
namespace {

/// Split-K: splits of at least eight k-tiles each.
struct Splits {
  int count;
  int depth;  ///< of each

  Splits(int64_t blocks, int length) {
    const int steps = ceil_div(length, gradient_depth);
    count = split_k::mma_gradient.splits(blocks, steps / 8);
    depth = ceil_div(steps, count) * gradient_depth;
  }
};

template <int channels>
void start_data_gradient(ContributionTiles<128> dy, const f16* w, DataGradient epilogue, const Work& work,
                         Workspace& workspace, Stream& stream) {
  using Shared = GradientShared<ContributionTiles<128>, FilterTiles<channels>>;
  const ConvolutionSizes& s = dy.matrix.sizes;
  const int length = s.taps() * s.k;
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.inputs(), 128)), static_cast<unsigned>(ceil_div(s.c, channels)));
  const Splits splits(int64_t{blocks.x} * blocks.y, length);
  if (splits.count > 1)
    epilogue.partial = workspace.floats(static_cast<size_t>(splits.count) * static_cast<size_t>(s.inputs()) *
                                        static_cast<size_t>(s.c));
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(splits.count)), gradient_threads, Shared::bytes};
  launch("data_gradient", work, grid, stream, data_gradient_kernel<channels>, dy, FilterTiles<channels>{s, w}, epilogue,
         length, splits.depth);
  if (splits.count > 1)
    launch("data_gradient_splits", {}, grid_for(int64_t{epilogue.pixels} * epilogue.channels / 8), stream,
           sum_data_gradient_kernel, epilogue, splits.count);
}

template <int filters, bool aligned>
void start_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  using Shared = GradientShared<OutputTiles<filters>, WindowTiles<128, aligned>>;
  const ConvolutionSizes& s = g.shape.sizes;
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.length(), 128)), static_cast<unsigned>(ceil_div(s.k, filters)));
  const Splits splits(int64_t{blocks.x} * blocks.y, s.outputs());
  const WeightGradient gradient = weight_gradient_of(g, splits.count, workspace);
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(splits.count)), gradient_threads, Shared::bytes};
  launch("weight_gradient", weight_gradient_work(s), grid, stream, weight_gradient_kernel<filters, aligned>,
         OutputTiles<filters>{g.dy.fp16().data(), s.k, s.outputs()}, WindowTiles<128, aligned>{{s, g.x.fp16().data()}},
         gradient, s.outputs(), splits.depth);
  if (splits.count > 1) add_up_weight_gradient(gradient, splits.count, stream);
}

}  // namespace

void add_up_weight_gradient(const WeightGradient& gradient, int splits, Stream& stream) {
  const int64_t count = static_cast<int64_t>(gradient.epilogue.filters) * (gradient.epilogue.length() + 1);
  launch("weight_gradient_splits", {}, grid_for(count), stream, sum_weight_gradient_kernel, gradient, splits);
}

namespace cuda {

void mma_data_gradient(const DataGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(mma::fits_data_gradient(g.shape), "mma", g.shape);
  const ConvolutionSizes& s = g.shape.sizes;
  const DataGradient epilogue{half_gradient(g.dx, g.store), s.inputs(), s.c, 1.0F / g.w.normalisation(), nullptr};
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(g.w.shape().elements()), sizeof(f16));
  const ContributionTiles<128> from{{s, g.dy.fp16().data()}};
  // Narrow blocks where wide ones would compute more than a quarter more channels, as padding.
  if (4 * 128 * ceil_div(s.c, 128) > 5 * 64 * ceil_div(s.c, 64))
    start_data_gradient<64>(from, g.w.rows_in_fp16(), epilogue, work, workspace, stream);
  else
    start_data_gradient<128>(from, g.w.rows_in_fp16(), epilogue, work, workspace, stream);
}

void mma_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  expect_fit(mma::fits_weight_gradient(g.shape), "mma", g.shape);
  if (g.shape.sizes.c % 8 == 0 && g.shape.x_alignment == 16)
    start_weight_gradient<128, true>(g, workspace, stream);
  else
    start_weight_gradient<64, false>(g, workspace, stream);
}

}  // namespace cuda
}  // namespace nibblenet
