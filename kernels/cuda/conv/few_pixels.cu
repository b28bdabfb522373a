#include "kernels/cuda/conv/few_pixels.cuh"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/unpacked_weights.cuh"

namespace nibblenet {
namespace {

/// Starts the kernel that expands weights to superblocks of fp16 values.
void make_superblocks(FewPixels& p, uint8_t* superblocks, const ForwardProduct& f, Stream& stream) {
  const ConvolutionSizes& s = f.shape.sizes;
  p.weights = {.layout = fp16_superblocks(s), .codes = superblocks, .rows = s.k};
  p.weights_from_before = true;
  const Work work{.bytes = static_cast<double>(f.w.resident().total()) + static_cast<double>(p.weights.layout.bytes())};
  Grid grid = grid_for(p.weights.layout.tile_rows() * p.weights.layout.tile_columns() * weight_superblock_threads);
  grid.pdl = true;
  with_half_operands(
      any_elements(f.y), f,
      [&]<class Weights>(const Weights& weights, const BiasEpilogue<AnyElements>& epilogue, float factor) {
        launch("weight_superblocks", work, grid, stream, weight_superblocks_kernel<Weights>, superblocks, weights,
               factor);
        p.epilogue = epilogue;
      });
}

template <class Codes>
void start(const FewPixels& p, const FewPixelsBlocks& blocks, const Work& work, Stream& stream) {
  const Grid grid{dim3(static_cast<unsigned>(blocks.columns), static_cast<unsigned>(blocks.rows),
                       static_cast<unsigned>(blocks.splits)),
                  few_pixels_threads, sizeof(FewPixelsShared<Codes>), true};
  launch("few_pixels_conv2d_forward", work, grid, stream, few_pixels_kernel<Codes>, p);
}

/// Offsets of a product's scratch in the workspace, in floats.
struct Scratch {
  size_t weights = 0;  ///< superblocks of fp16 values
  size_t partial = 0;
  size_t results = 0;  ///< fp16 values that are pooled

  size_t total() const { return weights + partial + results; }
};

}  // namespace

namespace cuda {

void few_pixels_forward(const ForwardProduct& product, Workspace& workspace, Stream& stream) {
  const ProductCase& shape = product.shape;
  const ConvolutionSizes& s = shape.sizes;
  expect_fit(shape.pools() ? few_pixels::fits_pooling(shape) : few_pixels::fits(shape), "few_pixels", shape);
  if (s.outputs() == 0) return;
  const bool in_place = few_pixels::multiplies_in_place(shape.weight);
  const MaxPooling pool = max_pooling(shape);
  const FewPixelsBlocks blocks(s);
  Scratch scratch{.partial = blocks.partial_floats()};
  if (!in_place) scratch.weights = static_cast<size_t>(fp16_superblocks(s).bytes()) / sizeof(float);
  if (shape.pools()) scratch.results = static_cast<size_t>(s.outputs()) * static_cast<size_t>(s.k) / 2;
  float* memory = scratch.total() > 0 ? workspace.floats(scratch.total()) : nullptr;
  const size_t rows = shape.pools() ? static_cast<size_t>(s.n * pool.p * blocks.rows) : 0;
  const size_t semaphores = blocks.splits > 1 ? static_cast<size_t>(blocks.count()) : 0;
  unsigned* counters = semaphores + rows > 0 ? workspace.counters(semaphores + rows) : nullptr;
  ForwardProduct f = product;
  if (shape.pools()) {
    auto* results = reinterpret_cast<f16*>(memory + scratch.weights + scratch.partial);
    f.y = TensorView<f16>(results, {s.n, s.p, s.q, s.k});
  }
  const bool stores_fp16 = f.y.precision() == Precision::float16;
  FewPixels p{.windows = {s, f.x.fp16().data()},
              .step = TapSlice(s, few_pixels_warps),
              .by_fours = stores_fp16 && s.k % 4 == 0 && reinterpret_cast<uintptr_t>(f.y.data()) % sizeof(uint2) == 0};
  p.splits = blocks.splits;
  if (p.splits > 1) {
    p.partial = memory + scratch.weights;
    p.semaphores = counters;
  }
  if (shape.pools())
    p.pooling = {pool, f.y.fp16().data(), product.y.fp16().data(), shape.pool.flat, counters + semaphores};
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(sizeof(f16)));
  if (!in_place) {
    make_superblocks(p, reinterpret_cast<uint8_t*>(memory), f, stream);
    start<HalfCodes>(p, blocks, work, stream);
    return;
  }
  p.weights = superblock_operand(f.w);
  p.epilogue = superblock_epilogue(f, p.weights);
  with_codes_or_strings(f.w, [&]<class Codes>() { start<Codes>(p, blocks, work, stream); });
}

}  // namespace cuda
}  // namespace nibblenet
