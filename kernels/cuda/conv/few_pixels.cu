#include <algorithm>
#include <limits>

#include "kernels/cuda/conv/few_pixels.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/convolution_sizes.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

constexpr int64_t multiprocessors = 132;  ///< of a large GPU

/// How a product is cut. Along k into as many parts as bring a block to each multiprocessor, and a superblock to each
/// warp: a matter of the shapes alone, so that results are.
struct Blocks {
  int64_t columns;
  int64_t rows;
  int parts;

  Blocks(int64_t pixels, const Superblocks& layout)
      : columns((pixels + warp_columns - 1) / warp_columns),
        rows(layout.down()),
        parts(static_cast<int>(
            std::clamp<int64_t>(multiprocessors / std::max<int64_t>(count(), 1), 1,
                                std::max<int64_t>((layout.across() + few_pixels_warps - 1) / few_pixels_warps, 1)))) {}

  int64_t count() const { return columns * rows; }
  size_t partial_floats() const {
    return parts == 1 ? 0 : static_cast<size_t>(parts * count()) * warp_columns * few_pixels_rows;
  }
};

/// Whether weights can be multiplied where they lie.
bool in_place(const WeightCuda& w) {
  return w.layout() == WeightLayout::superblocks && w.step_run() == 0 &&
         w.view().groups.groups <= std::numeric_limits<int>::max();
}

/// Or else be turned into superblocks of halves; those that train have halves of their own.
bool suits(ConstActivations x, const WeightCuda& w) {
  return w.shape().rank() == 4 && x.precision() == Precision::float16 && x.size(3) % slice == 0 && x.size(3) > 0 &&
         on_16_bytes(x.data()) && w.form() != WeightCuda::Form::float32 &&
         (in_place(w) || w.rows_in_halves() == nullptr);
}

/// All of a product but its weights and what is done at its end.
FewPixels product_of(Activations y, TensorView<const f16> x, const ConvolutionSizes& s) {
  const bool halves = y.precision() == Precision::float16;
  return {.windows = {s, x.data()},
          .by_fours = halves && s.k % 4 == 0 && reinterpret_cast<uintptr_t>(y.data()) % sizeof(uint2) == 0};
}

/// Starts the kernel that makes superblocks of halves.
void make_superblocks(FewPixels& p, uint8_t* superblocks, Activations y, const WeightCuda& w, const float* bias,
                      const ConvolutionSizes& s, bool with_relu, Stream& stream) {
  p.weights = {.layout = {s.k, s.length(), HalfCodes::bits}, .codes = superblocks, .rows = s.k};
  p.weights_from_before = true;
  const Work work{.bytes = static_cast<double>(w.resident().total()) + static_cast<double>(p.weights.layout.bytes())};
  Grid grid = grid_for(p.weights.layout.down() * p.weights.layout.across() * weight_superblock_threads);
  grid.early = true;
  with_half_operands(AnyElements{y.data(), y.precision() == Precision::float16}, w, bias, s, with_relu,
                     [&]<class Weights>(const Weights& weights, const BiasResult<AnyElements>& result, float factor) {
                       launch("weight_superblocks", work, grid, stream, weight_superblocks_kernel<Weights>, superblocks,
                              weights, factor);
                       p.result = result;
                     });
}

template <class Codes>
void start(const FewPixels& p, const Blocks& blocks, const Work& work, Stream& stream) {
  const Grid grid{dim3(static_cast<unsigned>(blocks.columns), static_cast<unsigned>(blocks.rows),
                       static_cast<unsigned>(blocks.parts)),
                  few_pixels_threads, sizeof(FewPixelsShared<Codes>), true};
  launch("few_pixels_conv2d_forward", work, grid, stream, few_pixels_kernel<Codes>, p);
}

/// A pooled result, [N, pool.p, pool.q, K] or flat.
struct Pooled {
  TensorView<f16> y;
  MaxPooling pool;
};

/// Where the scratch of a product lies in the workspace, in floats.
struct Scratch {
  size_t weights = 0;  ///< superblocks of halves
  size_t partial = 0;
  size_t results = 0;  ///< halves that are pooled

  size_t total() const { return weights + partial + results; }
};

/// y, or `pooled` where that is not null and y is ignored.
void forward(Activations y, TensorView<const f16> x, const WeightCuda& w, const float* bias, const ConvolutionSizes& s,
             Epilogue epilogue, const Pooled* pooled, Workspace& workspace, Stream& stream) {
  if (s.outputs() == 0) return;
  const bool with_relu = epilogue == Epilogue::relu;
  const Blocks blocks(s.outputs(), w.superblock_layout());
  const Superblocks of_halves(s.k, s.length(), HalfCodes::bits);
  Scratch scratch{.partial = blocks.partial_floats()};
  if (!in_place(w)) scratch.weights = static_cast<size_t>(of_halves.bytes()) / sizeof(float);
  if (pooled != nullptr) scratch.results = static_cast<size_t>(s.outputs()) * static_cast<size_t>(s.k) / 2;
  float* memory = scratch.total() > 0 ? workspace.floats(scratch.total()) : nullptr;
  const size_t rows = pooled != nullptr ? static_cast<size_t>(s.n * pooled->pool.p * blocks.rows) : 0;
  const size_t arrivals = blocks.parts > 1 ? static_cast<size_t>(blocks.count()) : 0;
  unsigned* counters = arrivals + rows > 0 ? workspace.counters(arrivals + rows) : nullptr;
  if (pooled != nullptr) {
    auto* results = reinterpret_cast<f16*>(memory + scratch.weights + scratch.partial);
    y = TensorView<f16>(results, {s.n, s.p, s.q, s.k});
  }
  FewPixels p = product_of(y, x, s);
  p.parts = blocks.parts;
  if (p.parts > 1) {
    p.partial = memory + scratch.weights;
    p.arrivals = counters;
  }
  if (pooled != nullptr)
    p.pooling = {pooled->pool, y.halves().data(), pooled->y.data(), pooled->y.shape().rank() == 2, counters + arrivals};
  const Work work = work_of(s, static_cast<double>(w.resident().total()), static_cast<double>(sizeof(f16)));
  if (!in_place(w)) {
    make_superblocks(p, reinterpret_cast<uint8_t*>(memory), y, w, bias, s, with_relu, stream);
    start<HalfCodes>(p, blocks, work, stream);
    return;
  }
  p.weights = superblock_operand(w);
  p.result = superblock_result(y, w, p.weights, bias, s, with_relu);
  with_codes(w, [&]<class Codes>() { start<Codes>(p, blocks, work, stream); });
}

}  // namespace

namespace cuda {

bool has_few_pixels(ConstActivations x, const WeightCuda& w, Window window) {
  if (!suits(x, w)) return false;
  const Blocks blocks(x.size(0) * window.output(x.size(1)) * window.output(x.size(2)), w.superblock_layout());
  // Two blocks of ours for each multiprocessor are large tiles for a quarter of them.
  return blocks.count() <= 2 * multiprocessors;
}

void few_pixels_conv2d_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                               Window window, Epilogue epilogue, Workspace& workspace, Stream& stream) {
  if (!has_few_pixels(x, w, window))
    fail<Error>("no product for few pixels of {} and these weights", to_string(x.shape()));
  forward(y, x.halves(), w, bias.data(), sizes_of(x.shape(), y.shape(), window), epilogue, nullptr, workspace, stream);
}

bool few_pixels_conv2d_max_pool2d_forward(Activations y, ConstActivations x, const WeightCuda& w,
                                          TensorView<const float> bias, Window window, Epilogue epilogue, Window pool,
                                          Workspace& workspace, Stream& stream) {
  const int64_t filters = w.shape()[0];
  if (!has_few_pixels(x, w, window) || y.precision() != Precision::float16 || !on_16_bytes(y.data()) ||
      filters % 8 != 0 || pool.padding != 0 || pool.size > row_pooling_largest)
    return false;
  const Shape convolved = {x.size(0), window.output(x.size(1)), window.output(x.size(2)), filters};
  const Pooled pooled{y.halves(),
                      {.size = static_cast<int>(pool.size),
                       .stride = static_cast<int>(pool.stride),
                       .p = static_cast<int>(pool.output(convolved[1])),
                       .q = static_cast<int>(pool.output(convolved[2]))}};
  forward(y, x.halves(), w, bias.data(), sizes_of(x.shape(), convolved, window), epilogue, &pooled, workspace, stream);
  return true;
}

}  // namespace cuda
}  // namespace nibblenet
