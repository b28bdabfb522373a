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

/// Whether the splits of a tile become a thread block cluster.
bool forms_clusters(const char* name, const void* kernel, const Grid& grid, const Stream& stream) {
  return grid.cluster > 1 && grid.cluster <= few_pixels_largest_cluster && stream.uses_clusters() &&
         clusters_fit(name, kernel, grid);
}

template <class Codes, bool pools>
void start(FewPixels p, const FewPixelsBlocks& blocks, const Work& work, Stream& stream) {
  constexpr const char* name = "few_pixels_conv2d_forward";
  const auto splits = static_cast<unsigned>(blocks.splits);
  Grid grid{dim3(static_cast<unsigned>(blocks.columns), static_cast<unsigned>(blocks.rows), splits), few_pixels_threads,
            sizeof(FewPixelsShared<Codes, columns_of<Codes, pools>>), true, splits};
  const auto kernel = few_pixels_kernel<Codes, pools>;
  p.clustered = forms_clusters(name, reinterpret_cast<const void*>(kernel), grid, stream);
  if (!p.clustered) grid.cluster = 1;
  launch(name, work, grid, stream, kernel, p);
}

template <class Codes>
void start(const FewPixels& p, const FewPixelsBlocks& blocks, const Work& work, Stream& stream) {
  if (p.tiles.p > 0)
    start<Codes, true>(p, blocks, work, stream);
  else
    start<Codes, false>(p, blocks, work, stream);
}

/// Floats of split-K partial sums.
size_t partial_floats(const FewPixelsBlocks& blocks, bool pools) {
  if (blocks.splits == 1) return 0;
  const int fours = few_pixels_fours<few_pixels_columns(false, 0)>;
  const int pooled_fours = few_pixels_fours<few_pixels_columns(true, 0)>;  // the most
  return static_cast<size_t>(blocks.splits * blocks.count()) * (pools ? pooled_fours : fours) * few_pixels_threads * 4;
}

}  // namespace

namespace cuda {

void few_pixels_forward(const ForwardProduct& product, Workspace& workspace, Stream& stream) {
  const ProductCase& shape = product.shape;
  const ConvolutionSizes& s = shape.sizes;
  expect_fit(shape.pools() ? few_pixels::fits_pooling(shape) : few_pixels::fits(shape), "few_pixels", shape);
  if (s.outputs() == 0) return;
  const bool in_place = few_pixels::multiplies_in_place(shape.weight);
  const PooledTiles tiles = shape.pools() ? few_pixels::pooled_tiles(shape) : PooledTiles();
  const FewPixelsBlocks blocks = shape.pools() ? FewPixelsBlocks(s, tiles) : FewPixelsBlocks(s);
  const size_t of_weights = in_place ? 0 : static_cast<size_t>(fp16_superblocks(s).bytes()) / sizeof(float);
  const size_t of_splits = partial_floats(blocks, shape.pools());
  float* memory = of_weights + of_splits > 0 ? workspace.floats(of_weights + of_splits) : nullptr;
  const bool stores_fp16 = product.y.precision() == Precision::float16;
  FewPixels p{
      .windows = {s, product.x.fp16().data()},
      .step = TapSlice(s, few_pixels_warps),
      .by_fours = stores_fp16 && s.k % 4 == 0 && reinterpret_cast<uintptr_t>(product.y.data()) % sizeof(uint2) == 0,
      .splits = blocks.splits,
      .tiles = tiles,
      .flat = shape.pool.flat};
  if (p.splits > 1) {
    p.partial = memory + of_weights;
    p.semaphores = workspace.counters(static_cast<size_t>(blocks.count()));
  }
  const Work work = work_of(s, static_cast<double>(product.w.resident().total()), static_cast<double>(sizeof(f16)));
  if (!in_place) {
    make_superblocks(p, reinterpret_cast<uint8_t*>(memory), product, stream);
    start<HalfCodes>(p, blocks, work, stream);
    return;
  }
  p.weights = superblock_operand(product.w);
  p.epilogue = superblock_epilogue(product, p.weights);
  with_codes_or_strings(product.w, [&]<class Codes>() { start<Codes>(p, blocks, work, stream); });
}

}  // namespace cuda
}  // namespace nibblenet
