#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma_gradient.cuh"

namespace nibblenet {
namespace {

int tiles(int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

/// How a reduction is cut: into as many parts as bring about two blocks to each multiprocessor of a large GPU, of eight
/// steps each at least. A matter of the shapes alone, so that results are.
struct Parts {
  int count;
  int depth;  ///< of each

  Parts(int64_t blocks, int length) {
    constexpr int64_t blocks_wanted = 264;
    constexpr int64_t most = 256;
    const int64_t steps = tiles(length, gradient_depth);
    count = static_cast<int>(
        std::clamp<int64_t>(std::min(blocks_wanted / std::max<int64_t>(blocks, 1), steps / 8), 1, most));
    depth = tiles(steps, count) * gradient_depth;
  }
};

template <int channels>
void start_data_gradient(ContributionTiles<128> dy, const f16* w, DataGradient result, const Work& work,
                         Workspace& workspace, Stream& stream) {
  using Shared = GradientShared<ContributionTiles<128>, FilterTiles<channels>>;
  const ConvolutionSizes& s = dy.matrix.sizes;
  const int length = s.taps() * s.k;
  const dim3 blocks(static_cast<unsigned>(tiles(s.inputs(), 128)), static_cast<unsigned>(tiles(s.c, channels)));
  const Parts parts(int64_t{blocks.x} * blocks.y, length);
  if (parts.count > 1)
    result.partial =
        workspace.floats(static_cast<size_t>(parts.count) * static_cast<size_t>(s.inputs()) * static_cast<size_t>(s.c));
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(parts.count)), gradient_threads, Shared::bytes};
  launch("data_gradient", work, grid, stream, data_gradient_kernel<channels>, dy, FilterTiles<channels>{s, w}, result,
         length, parts.depth);
  if (parts.count > 1)
    launch("data_gradient_parts", {}, grid_for(int64_t{result.pixels} * result.channels / 8), stream,
           sum_data_gradient_kernel, result, parts.count);
}

bool data_gradient(Activations dx, ConstActivations dy, WeightCuda& w, const ConvolutionSizes& s,
                   const GradientStore& store, Workspace& workspace, Stream& stream) {
  if (dy.precision() != Precision::float16 || w.rows_in_halves() == nullptr || s.c % 8 != 0 || s.k % 8 != 0 ||
      !fits_half_gradient(dx, store) || !on_16_bytes(dy.data()))
    return false;
  const DataGradient result{half_gradient(dx, store), s.inputs(), s.c, 1.0F / w.normalisation(), nullptr};
  const Work work =
      work_of(s, static_cast<double>(sizeof(f16)) * static_cast<double>(w.shape().elements()), sizeof(f16));
  const ContributionTiles<128> from{{s, dy.halves().data()}};
  // Half of a wide block would be empty, or a quarter.
  if (4 * 128 * tiles(s.c, 128) > 5 * 64 * tiles(s.c, 64))
    start_data_gradient<64>(from, w.rows_in_halves(), result, work, workspace, stream);
  else
    start_data_gradient<128>(from, w.rows_in_halves(), result, work, workspace, stream);
  return true;
}

template <int filters, bool aligned>
void start_weight_gradient(const ParameterGradients& result, const f16* dy, const f16* x, const ConvolutionSizes& s,
                           Workspace& workspace, Stream& stream) {
  using Shared = GradientShared<OutputTiles<filters>, WindowTiles<128, aligned>>;
  const dim3 blocks(static_cast<unsigned>(tiles(s.length(), 128)), static_cast<unsigned>(tiles(s.k, filters)));
  const Parts parts(int64_t{blocks.x} * blocks.y, s.outputs());
  const auto count = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  WeightGradient gradient{result};
  if (parts.count > 1) {
    gradient.partial = workspace.floats(static_cast<size_t>(parts.count) * (count + static_cast<size_t>(s.k)));
    gradient.partial_bias = gradient.partial + static_cast<size_t>(parts.count) * count;
  }
  const Work work = work_of(s, static_cast<double>(sizeof(float)) * static_cast<double>(count), sizeof(f16));
  const Grid grid{dim3(blocks.x, blocks.y, static_cast<unsigned>(parts.count)), gradient_threads, Shared::bytes};
  launch("weight_gradient", work, grid, stream, weight_gradient_kernel<filters, aligned>,
         OutputTiles<filters>{dy, s.k, s.outputs()}, WindowTiles<128, aligned>{{s, x}}, gradient, s.outputs(),
         parts.depth);
  if (parts.count > 1) add_up_weight_gradient(gradient, parts.count, stream);
}

bool weight_gradient(ParameterGradients result, ConstActivations dy, ConstActivations x, const ConvolutionSizes& s,
                     Workspace& workspace, Stream& stream) {
  if (dy.precision() != Precision::float16 || s.k % 8 != 0 || s.length() == 0 || !on_16_bytes(dy.data())) return false;
  result.filters = s.k;
  result.channels = s.c;
  result.taps = s.taps();
  if (workspace.warpgroups() != Warpgroups::never &&
      cuda::warpgroup_weight_gradient(result, dy, x, s, workspace, stream))
    return true;
  const f16* from = dy.halves().data();
  const f16* with = x.halves().data();
  if (s.c % 8 != 0 && cuda::few_channels_weight_gradient(result, dy, x, s, workspace, stream)) return true;
  if (s.c % 8 == 0 && on_16_bytes(with))
    start_weight_gradient<128, true>(result, from, with, s, workspace, stream);
  else
    start_weight_gradient<64, false>(result, from, with, s, workspace, stream);
  return true;
}

}  // namespace

void add_up_weight_gradient(const WeightGradient& gradient, int parts, Stream& stream) {
  const int64_t count = static_cast<int64_t>(gradient.result.filters) * (gradient.result.length() + 1);
  launch("weight_gradient_parts", {}, grid_for(count), stream, sum_weight_gradient_kernel, gradient, parts);
}

namespace cuda {

bool tensor_conv2d_backward_data(Activations dx, ConstActivations dy, WeightCuda& w, Window window,
                                 const GradientStore& store, Workspace& workspace, Stream& stream) {
  if (workspace.warpgroups() != Warpgroups::never &&
      warpgroup_conv2d_backward_data(dx, dy, w, window, store, workspace, stream))
    return true;
  return data_gradient(dx, dy, w, sizes_of(dx.shape(), dy.shape(), window), store, workspace, stream);
}

bool tensor_linear_backward_data(Activations dx, ConstActivations dy, WeightCuda& w, const GradientStore& store,
                                 Workspace& workspace, Stream& stream) {
  if (workspace.warpgroups() != Warpgroups::never &&
      warpgroup_linear_backward_data(dx, dy, w, store, workspace, stream))
    return true;
  return data_gradient(dx, dy, w, sizes_of(as_images(dx.shape()), as_images(dy.shape()), {}), store, workspace, stream);
}

bool tensor_conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                   ConstActivations x, Window window, Workspace& workspace, Stream& stream) {
  return weight_gradient({.dw = dw.data(), .dbias = dbias.data()}, dy, x, sizes_of(x.shape(), dy.shape(), window),
                         workspace, stream);
}

bool tensor_conv2d_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x, Window window,
                                 float factor, SgdParameters parameters, Workspace& workspace, Stream& stream) {
  return weight_gradient(step_of(layer, factor, parameters), dy, x, sizes_of(x.shape(), dy.shape(), window), workspace,
                         stream);
}

bool tensor_linear_backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x, float factor,
                                 SgdParameters parameters, Workspace& workspace, Stream& stream) {
  return weight_gradient(step_of(layer, factor, parameters), dy, x,
                         sizes_of(as_images(x.shape()), as_images(dy.shape()), {}), workspace, stream);
}

bool tensor_linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                   ConstActivations x, Workspace& workspace, Stream& stream) {
  return weight_gradient({.dw = dw.data(), .dbias = dbias.data()}, dy, x,
                         sizes_of(as_images(x.shape()), as_images(dy.shape()), {}), workspace, stream);
}

}  // namespace cuda
}  // namespace nibblenet
