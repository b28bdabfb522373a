#include <algorithm>
#include <limits>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/linear/few_rows.cuh"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet {
namespace {

template <class Codes, int tiles, bool inside>
void start(const SkinnyProduct& p, const Work& work, Stream& stream) {
  const Grid grid{dim3(static_cast<unsigned>((p.layout.down() + warps_down - 1) / warps_down), p.parts), block_threads,
                  sizeof(SkinnyShared<Codes, tiles>), true};
  launch("skinny_linear_forward", work, grid, stream, skinny_product_kernel<Codes, tiles, inside>, p);
}

/// Into how many parts the columns are cut: about 128 blocks, of at least two superblocks a warp. A matter of the shape
/// alone, so that results are.
int parts_of(const Superblocks& layout) {
  constexpr int64_t blocks_wanted = 128;
  const int64_t rows_of_blocks = (layout.down() + warps_down - 1) / warps_down;
  return static_cast<int>(std::clamp<int64_t>(blocks_wanted / rows_of_blocks, 1,
                                              std::max<int64_t>(layout.across() / (2 * warps_across), 1)));
}

/// All of a product but where its parts are added up.
SkinnyProduct product_of(Activations y, TensorView<const f16> x, const WeightCuda& w, const float* bias,
                         bool with_relu) {
  const PackedView& view = w.view();
  const SuperblockSteps steps(w);
  const float value_factor = factor_of_values(w);
  SkinnyProduct p{.layout = w.superblock_layout(),
                  .codes = w.superblocks(),
                  .stored = view.values,
                  .value_factor = value_factor,
                  .x = x.data(),
                  .batch = static_cast<int>(x.size(0)),
                  .columns = static_cast<int>(x.size(1)),
                  .steps = steps,
                  .result = {{y.data(), y.precision() == Precision::float16},
                             bias,
                             static_cast<int>(w.shape()[0]),
                             static_cast<int>(x.size(0)),
                             1.0F / value_factor,
                             with_relu}};
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), p.fixed.values);
  if (steps.inside()) {
    p.result.factor /= view.scale_to;
  } else {
    p.result.steps = p.steps.steps;
    p.result.one_step_for_all = view.groups.groups == 1;
  }
  return p;
}

}  // namespace

namespace cuda {

bool is_skinny(ConstActivations x, const WeightCuda& w) {
  return w.layout() == WeightLayout::superblocks && x.precision() == Precision::float16 && x.size(0) <= skinny_batch &&
         x.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 &&
         w.view().groups.groups <= std::numeric_limits<int>::max();
}

void skinny_linear_forward(Activations y, ConstActivations x, const WeightCuda& w, TensorView<const float> bias,
                           Epilogue epilogue, Workspace& workspace, Stream& stream) {
  if (!is_skinny(x, w)) fail<Error>("no product for small batches of {} and these weights", to_string(x.shape()));
  if (x.size(0) == 0) return;
  SkinnyProduct p = product_of(y, x.halves(), w, bias.data(), epilogue == Epilogue::relu);
  p.parts = parts_of(p.layout);
  if (p.parts > 1) {
    p.partial = workspace.floats(static_cast<size_t>(p.parts) * static_cast<size_t>(y.elements()));
    p.arrivals = workspace.counters(static_cast<size_t>(p.layout.down()));
  }
  const Work work{
      .bytes = static_cast<double>(w.resident().total()) +
               static_cast<double>(bytes_of(x.precision())) * static_cast<double>(x.elements() + y.elements()),
      .flops = 2.0 * static_cast<double>(x.size(0)) * static_cast<double>(w.shape().elements())};
  const auto start_with = [&]<class Codes, bool inside>() {
    if (p.batch <= 8)
      start<Codes, 1, inside>(p, work, stream);
    else
      start<Codes, 2, inside>(p, work, stream);
  };
  with_codes(w, [&]<class Codes>() {
    if constexpr (Codes::bits < 16)  // halves have no steps
      if (p.steps.inside()) return start_with.template operator()<Codes, true>();
    start_with.template operator()<Codes, false>();
  });
}

}  // namespace cuda
}  // namespace nibblenet
