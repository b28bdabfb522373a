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
  for (int first = 0; first < s.n; first += few_rows::most_rows) {
    const int rows = std::min(s.n - first, few_rows::most_rows);
    const ForwardProduct part =
        forward_product(f.y.slice(first, rows), f.x.slice(first, rows), f.w, f.bias, {}, f.epilogue);
    const FewRowsStrings p{.layout = StringBlocks(f.w.view().trellis()),
                           .codes = f.w.view().codes,
                           .x = part.x.fp16().data(),
                           .columns = s.c,
                           .results = {rows, string_epilogue(part)}};
    with_quarters(f.w.view().trellis_quarters, [&]<int quarters>() {
      if (rows <= digit_rows) return start<quarters, DigitProduct>(p, part, workspace, stream);
      if (rows <= 8) return start<quarters, HalfProduct<1>>(p, part, workspace, stream);
      start<quarters, HalfProduct<2>>(p, part, workspace, stream);
    });
  }
}

}  // namespace cuda
}  // namespace nibblenet
