#include <algorithm>
#include <limits>
#include <optional>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/mma.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

/// What every GPU from compute capability 8.0 on lets a block have.
constexpr int most_shared_bytes = 99 << 10;

template <class Codes>
bool fits(const PixelBlocks& b) {
  return b.columns() <= warp_columns * most_warps_across<Codes> && TensorShared<Codes>::bytes(b) <= most_shared_bytes;
}

/// Blocks of `images` images, each with `rows` output rows, or rows of the pooled output where there is pooling.
PixelBlocks blocks_of(const ConvolutionSizes& s, MaxPooling pooling, int images, int rows) {
  PixelBlocks b{.sizes = s, .images = images, .rows = rows, .row_step = rows, .pooling = pooling};
  b.bands = (s.p + rows - 1) / rows;
  if (pooling.size > 0) {
    b.pooling.rows = rows;
    b.rows = (rows - 1) * pooling.stride + pooling.size;
    b.row_step = rows * pooling.stride;
    b.bands = (pooling.p + rows - 1) / rows;
  }
  const auto inputs = [&](int outputs) { return (outputs - 1) * s.stride + s.size; };
  b.height = inputs(b.rows);
  b.width = inputs(s.q);
  // A slice is copied tile_stages - 1 superblocks ahead, while those of the slices before it are still read.
  b.slots = std::min(1 + (tile_stages - 2 + s.taps()) / s.taps(), b.slices());
  return b;
}

/// The largest blocks that fit: of several images, one, or a band of its rows. Nothing where not even a row does.
template <class Codes>
std::optional<PixelBlocks> plan(const ConvolutionSizes& s, const MaxPooling& pooling) {
  // Linear layers: more columns would leave a GPU without blocks, fewer would unpack weights more often.
  const int wanted = (s.taps() == 1 && s.p * s.q == 1 ? 4 : most_warps_across<Codes>)*warp_columns;
  const int rows = pooling.size > 0 ? pooling.p : s.p;
  for (int images = std::min(s.n, wanted / (s.p * s.q)); images > 0; --images)
    if (const PixelBlocks b = blocks_of(s, pooling, images, rows); fits<Codes>(b)) return b;
  for (int bands = 1; bands <= rows; ++bands)
    if (const PixelBlocks b = blocks_of(s, pooling, 1, (rows + bands - 1) / bands); fits<Codes>(b)) return b;
  return std::nullopt;
}

/// All of a product but how its pixels and its superblocks are cut.
TensorProduct product_of(Activations y, TensorView<const f16> x, const WeightCuda& w, const float* bias,
                         const ConvolutionSizes& s, bool with_relu) {
  const SuperblockWeights weights = superblock_operand(w);
  return {.weights = weights, .x = x.data(), .result = superblock_result(y, w, weights, bias, s, with_relu)};
}

/// Into how many parts the superblocks along k are cut: about a thousand warps, of at least four superblocks each. A
/// matter of the shapes alone, so that results are.
int parts_of(const PixelBlocks& b, int64_t blocks, int warps) {
  constexpr int64_t warps_wanted = 1024;
  constexpr int64_t most = 8;  // the last one adds them all up
  const int64_t steps = static_cast<int64_t>(b.slices()) * b.sizes.taps();
  return static_cast<int>(std::clamp<int64_t>(std::min(warps_wanted / (blocks * warps), steps / 4), 1, most));
}

template <class Codes>
bool start(TensorProduct p, const ConvolutionSizes& s, const MaxPooling& pooling, const Work& work,
           Workspace& workspace, Stream& stream) {
  const auto pixels = plan<Codes>(s, pooling);
  if (!pixels) return false;
  p.pixels = *pixels;
  const int across = (p.pixels.columns() + warp_columns - 1) / warp_columns;
  const auto columns = static_cast<unsigned>((s.n + p.pixels.images - 1) / p.pixels.images * p.pixels.bands);
  const auto rows = static_cast<unsigned>((p.weights.layout.down() + warps_down_tile - 1) / warps_down_tile);
  const int64_t blocks = int64_t{columns} * rows;
  p.parts = parts_of(p.pixels, blocks, warps_down_tile * across);
  if (p.parts > 1) {
    p.partial = workspace.floats(static_cast<size_t>(p.parts * blocks * across * warp_columns * tile_rows));
    p.arrivals = workspace.counters(static_cast<size_t>(blocks));
  }
  const Grid grid{dim3(columns, rows, static_cast<unsigned>(p.parts)),
                  static_cast<unsigned>(32 * warps_down_tile * across),
                  static_cast<size_t>(TensorShared<Codes>::bytes(p.pixels)), true};
  launch("tensor_product", work, grid, stream, tensor_product_kernel<Codes>, p);
  return true;
}

/// Whether a product is one for the warpgroups' kernel, which turns weights into halves first: for linear layers that
/// is more than the product until there are many rows.
bool pays(const ConvolutionSizes& s) { return s.size != 1 || s.p * s.q != 1 || s.n >= 48; }

/// Whether a forward product is to be tried on warpgroups. Where superblocks do not fit, the alternative is slow.
bool by_warpgroups(const Workspace& workspace, const ConvolutionSizes& s, bool alternative) {
  switch (workspace.warpgroups()) {
    case Warpgroups::never:
      return false;
    case Warpgroups::where_they_pay:
      return !alternative || pays(s);
    case Warpgroups::wherever_possible:
      return true;
  }
  return false;
}

/// Whether superblocks of `w` line up with slices of 64 channels, and everything can be copied 16 bytes at a time.
bool suits(Activations y, ConstActivations x, const WeightCuda& w, const ConvolutionSizes& s) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return w.layout() == WeightLayout::superblocks && x.precision() == Precision::float16 &&
         s.c % (s.taps() == 1 ? 8 : slice) == 0 && s.outputs() > 0 && aligned(x.data()) && aligned(y.data()) &&
         w.view().groups.groups <= std::numeric_limits<int>::max();
}

bool forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
             const ConvolutionSizes& s, const MaxPooling& pooling, Epilogue epilogue, Workspace& workspace,
             Stream& stream) {
  if (!suits(y, x, w, s)) return false;
  const TensorProduct p = product_of(y, x.halves(), w, bias.data(), s, epilogue == Epilogue::relu);
  const Work work = work_of(s, static_cast<double>(w.resident().total()), static_cast<double>(sizeof(f16)));
  bool started = false;
  with_codes(w, [&]<class Codes>() { started = start<Codes>(p, s, pooling, work, workspace, stream); });
  return started;
}

}  // namespace

namespace cuda {

BiasResult<AnyElements> superblock_rows(f16* rows, Activations y, const WeightCuda& w, TensorView<const float> bias,
                                        const ConvolutionSizes& s, Epilogue epilogue, Stream& stream) {
  const SuperblockWeights weights = superblock_operand(w);
  const int64_t superblocks = weights.layout.down() * weights.layout.across();
  const auto blocks = static_cast<unsigned>((superblocks + superblock_rows_warps - 1) / superblock_rows_warps);
  const Work work{.bytes = static_cast<double>(w.resident().total()) + 2.0 * s.k * s.length()};
  with_codes(w, [&]<class Codes>() {
    const Grid grid{dim3(blocks), 32 * superblock_rows_warps, sizeof(SuperblockRowsShared<Codes>), true};
    launch("superblock_rows", work, grid, stream, superblock_rows_kernel<Codes>, rows, weights, s.length());
  });
  return superblock_result(y, w, weights, bias.data(), s, epilogue == Epilogue::relu);
}

bool tensor_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                           Epilogue epilogue, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes s = sizes_of(as_images(x.shape()), as_images(y.shape()), {});
  if (by_warpgroups(workspace, s, suits(y, x, w, s)) &&
      warpgroup_linear_forward(y, x, w, bias, epilogue, workspace, stream))
    return true;
  return forward(y, x, w, bias, s, {}, epilogue, workspace, stream);
}

bool tensor_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                           Window window, Epilogue epilogue, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes s = sizes_of(x.shape(), y.shape(), window);
  if (by_warpgroups(workspace, s, suits(y, x, w, s)) &&
      warpgroup_conv2d_forward(y, x, w, bias, window, epilogue, workspace, stream))
    return true;
  return forward(y, x, w, bias, s, {}, epilogue, workspace, stream);
}

bool tensor_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                      TensorView<const float> bias, Window window, Epilogue epilogue, Window pool,
                                      Workspace& workspace, Stream& stream) {
  if (y.precision() != Precision::float16 || pool.padding != 0) return false;
  const Shape convolved = {x.size(0), window.output(x.size(1)), window.output(x.size(2)), w.shape()[0]};
  const MaxPooling pooling{.size = static_cast<int>(pool.size),
                           .stride = static_cast<int>(pool.stride),
                           .p = static_cast<int>(y.size(1)),
                           .q = static_cast<int>(y.size(2))};
  const ConvolutionSizes s = sizes_of(x.shape(), convolved, window);
  if (by_warpgroups(workspace, s, true)) return false;  // the pooling is a kernel of its own then
  return forward(y, x, w, bias, s, pooling, epilogue, workspace, stream);
}

}  // namespace cuda
}  // namespace nibblenet
