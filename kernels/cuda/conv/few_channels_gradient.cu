#include <algorithm>

#include "kernels/cuda/conv/few_channels_gradient.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"

namespace nibblenet {
namespace {

constexpr int64_t multiprocessors = 132;     ///< of a large GPU, each of which has one block
constexpr int most_shared_bytes = 99 << 10;  ///< of a block, on every GPU from compute capability 8.0 on

/// Whether a window's runs begin at whole words, and a block's share fits.
bool suits(const FewChannelsGradient& g) {
  const ConvolutionSizes& s = g.sizes;
  const auto even = [&](int pixels) { return int64_t{pixels} * s.c % 2 == 0; };
  return even(s.stride) && even(s.padding) && even(s.w) && s.stride <= s.size &&
         g.tiles() <= few_channels_tiles * (gradient_threads / 32) && g.shared_bytes() <= most_shared_bytes;
}

}  // namespace

namespace cuda {

bool few_channels_weight_gradient(const ParameterGradients& result, ConstActivations dy, ConstActivations x,
                                  const ConvolutionSizes& s, Workspace& workspace, Stream& stream) {
  if (s.k % 8 != 0 || s.outputs() == 0 || !on_16_bytes(dy.data()) ||
      reinterpret_cast<uintptr_t>(x.data()) % sizeof(uint32_t) != 0)
    return false;
  FewChannelsGradient g{
      .sizes = s, .x = x.halves().data(), .dy = dy.halves().data(), .gradient = {result}, .bands = 1, .rows = s.p};
  if (!suits(g)) return false;
  const auto blocks_across = static_cast<unsigned>((s.k + 63) / 64);
  const int64_t most_parts = std::max<int64_t>(multiprocessors / blocks_across, 1);
  // Bands of at least four rows, each of which reads some of the image again.
  const auto bands_wanted = static_cast<int>(std::max<int64_t>(most_parts / s.n, 1));
  g.rows = std::max(4, (s.p + bands_wanted - 1) / bands_wanted);
  g.bands = (s.p + g.rows - 1) / g.rows;
  const auto parts = static_cast<unsigned>(std::min<int64_t>(g.units(), most_parts));
  const auto count = static_cast<size_t>(s.k) * static_cast<size_t>(s.length());
  if (parts > 1) {
    g.gradient.partial = workspace.floats(parts * (count + static_cast<size_t>(s.k)));
    g.gradient.partial_bias = g.gradient.partial + parts * count;
  }
  const Work work = work_of(s, static_cast<double>(sizeof(float)) * static_cast<double>(count), sizeof(f16));
  const Grid grid{dim3(blocks_across, parts), gradient_threads, static_cast<size_t>(g.shared_bytes())};
  launch("few_channels_weight_gradient", work, grid, stream, few_channels_gradient_kernel, g);
  if (parts > 1) add_up_weight_gradient(g.gradient, static_cast<int>(parts), stream);
  return true;
}

}  // namespace cuda
}  // namespace nibblenet
