#include <limits>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/linear/few_rows_fit.h"
#include "kernels/cuda/linear/few_rows_strings.cuh"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet {
namespace {

template <int quarters, class Product>
void start(FewRowsStrings p, const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  const int64_t sequences = p.layout.sequences(), blocks = p.layout.blocks();
  // Each warp of a split has at least one block.
  p.results.splits = std::max(split_k::few_rows.splits(sequences, blocks / few_rows_strings_warps),
                              static_cast<int>(ceil_div(blocks, int64_t{Product::most_blocks})));
  reserve(p.results, sequences, workspace);
  const int64_t of_warp = ceil_div(ceil_div(blocks, int64_t{p.results.splits}), few_rows_strings_warps);
  const auto shared_bytes = [&]<bool of_90>() {
    return FewRowsStringsShared<quarters, Product, few_rows_strings_stages<quarters, Product>(of_90)>::bytes(of_warp);
  };
  const Grid grid{dim3(static_cast<unsigned>(sequences), static_cast<unsigned>(p.results.splits)),
                  few_rows_strings_threads,
                  stream.compiled_for() >= 90 ? shared_bytes.template operator()<true>()
                                              : shared_bytes.template operator()<false>(),
                  true};
  const Work work = work_of(f.shape.sizes, static_cast<double>(f.w.resident().total()), sizeof(f16));
  launch("few_rows_linear_forward", work, grid, stream, few_rows_strings_kernel<quarters, Product>, p);
}

}  // namespace

namespace cuda {

void few_rows_strings_forward(const ForwardProduct& f, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes& s = f.shape.sizes;
  FewRowsStrings p{.layout = StringBlocks(f.w.view().trellis()),
                   .codes = f.w.view().codes,
                   .x = f.x.fp16().data(),
                   .columns = s.c,
                   .results = {s.n, epilogue_of(any_elements(f.y), f, 1.0F)}};
  p.results.epilogue.steps = {f.w.view().scales, f.w.view().scale_type, f.w.view().scale_to};
  with_quarters(f.w.view().trellis_quarters, [&]<int quarters>() {
    if (s.n <= digit_rows) return start<quarters, DigitProduct>(p, f, workspace, stream);
    if (s.n <= 8) return start<quarters, HalfProduct<1>>(p, f, workspace, stream);
    start<quarters, HalfProduct<2>>(p, f, workspace, stream);
  });
}

}  // namespace cuda
}  // namespace nibblenet
