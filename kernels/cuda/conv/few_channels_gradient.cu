#include "kernels/cuda/conv/few_channels_gradient.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"

namespace nibblenet::cuda {

void few_channels_weight_gradient(const WeightGradientProduct& product, Workspace& workspace, Stream& stream) {
  expect_fit(few_channels::fits_weight_gradient(product.shape), "few_channels", product.shape);
  const ConvolutionSizes& s = product.shape.sizes;
  FewChannelsGradient g{{s}, product.x.fp16().data(), product.dy.fp16().data()};
  const auto blocks_across = static_cast<unsigned>(ceil_div(s.k, FewChannelsRuns::filters));
  // One block per multiprocessor.
  const int64_t most_splits = std::max<int64_t>(nominal_multiprocessors / blocks_across, 1);
  // Bands have at least four rows: each band reads some rows of the image again.
  const auto bands_wanted = static_cast<int>(std::max<int64_t>(most_splits / s.n, 1));
  g.rows = std::max(4, ceil_div(s.p, bands_wanted));
  g.bands = ceil_div(s.p, g.rows);
  const auto splits = static_cast<int>(std::min<int64_t>(g.units(), most_splits));
  g.gradient = weight_gradient_of(product, splits, workspace);
  const Grid grid{dim3(blocks_across, static_cast<unsigned>(splits)), gradient_threads,
                  static_cast<size_t>(g.shared_bytes())};
  launch("few_channels_weight_gradient", weight_gradient_work(s), grid, stream, few_channels_gradient_kernel, g);
  if (splits > 1) add_up_weight_gradient(g.gradient, splits, stream);
}

}  // namespace nibblenet::cuda
