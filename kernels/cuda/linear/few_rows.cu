#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/linear/few_rows.cuh"
#include "kernels/cuda/linear/few_rows_fit.h"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet {
namespace {

template <class Codes, int tiles, bool inside>
void start(const FewRows& p, const Work& work, Stream& stream) {
  const int64_t superblocks = ceil_div(ceil_div(p.layout.tile_columns(), p.results.splits), few_rows_column_warps);
  const size_t shared_bytes = stream.compiled_for() >= 90
                                  ? FewRowsShared<Codes, tiles, few_rows_stages<Codes>(true)>::bytes(superblocks)
                                  : FewRowsShared<Codes, tiles, few_rows_stages<Codes>(false)>::bytes(superblocks);
  const Grid grid{dim3(static_cast<unsigned>(ceil_div(p.layout.tile_rows(), few_rows_row_warps)), p.results.splits),
                  few_rows_threads, shared_bytes, true};
  launch("few_rows_linear_forward", work, grid, stream, few_rows_kernel<Codes, tiles, inside>, p);
}

/// Kernel parameters of a product, without its splits.
FewRows product_of(const ForwardProduct& f) {
  const WeightCuda& w = f.w;
  const PackedView& view = w.view();
  const SuperblockSteps steps(w);
  const float value_factor = factor_of_values(w);
  FewRows p{.layout = w.superblock_layout(),
            .codes = w.superblocks(),
            .stored = view.values,
            .value_factor = value_factor,
            .x = f.x.fp16().data(),
            .columns = f.shape.sizes.c,
            .steps = steps,
            .results = {f.shape.sizes.n, epilogue_of(any_elements(f.y), f, 1.0F / value_factor)}};
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), p.fixed.values);
  if (steps.inside()) {
    p.results.epilogue.factor /= view.scale_to;
  } else {
    p.results.epilogue.steps = p.steps.steps;
    p.results.epilogue.one_step_for_all = view.groups.groups == 1;
  }
  return p;
}

}  // namespace

namespace cuda {

void few_rows_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  expect_fit(few_rows::fits(f.shape), "few_rows", f.shape);
  const ConvolutionSizes& s = f.shape.sizes;
  if (s.n == 0) return;
  if (f.w.layout() == WeightLayout::strings) return few_rows_strings_forward(f, workspace, stream);
  FewRows p = product_of(f);
  // Each split has at least two superblocks per warp.
  p.results.splits = split_k::few_rows.splits(ceil_div(p.layout.tile_rows(), few_rows_row_warps),
                                              p.layout.tile_columns() / (2 * few_rows_column_warps));
  reserve(p.results, p.layout.tile_rows(), workspace);
  const Work work = work_of(s, static_cast<double>(f.w.resident().total()), sizeof(f16));
  const auto start_with = [&]<class Codes, bool inside>() {
    if (p.results.batch <= 8)
      start<Codes, 1, inside>(p, work, stream);
    else
      start<Codes, 2, inside>(p, work, stream);
  };
  with_codes(f.w, [&]<class Codes>() {
    if constexpr (Codes::bits < 16)  // fp16 weights have no scales
      if (p.steps.inside()) return start_with.template operator()<Codes, true>();
    start_with.template operator()<Codes, false>();
  });
}

}  // namespace cuda
}  // namespace nibblenet
