#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"
#include "kernels/cuda/linear/few_outputs_fit.h"
#include "kernels/cuda/linear/launchers.h"

// Gradients of a linear layer of few outputs, such as a classifier's last one. Ten columns of dy
// are not a multiple of 16 bytes, and would leave most of an mma tile empty. The time goes to
// reading x, or to writing dx.

namespace nibblenet {
namespace {

constexpr int most_filters = few_outputs::most_gradient_outputs;
constexpr int few_outputs_gradient_threads = 256;

/// Data gradient: dx[n, C] = sum over k of dy[n, k] w[k, C], from the float32 weights, with float32
/// sums. One thread per eight channels of a row.
__global__ void __launch_bounds__(few_outputs_gradient_threads)
    few_outputs_data_gradient_kernel(HalfGradient dx, const f16* dy, const float* w, int filters, int vectors,
                                     int count) {
  const int thread = static_cast<int>(blockIdx.x) * few_outputs_gradient_threads + static_cast<int>(threadIdx.x);
  if (thread >= count) return;
  const int row = thread / vectors;
  const auto* column = reinterpret_cast<const float4*>(w) + 2 * (thread - row * vectors);
  float sum[8] = {};
#pragma unroll 4
  for (int k = 0; k < filters; ++k) {
    const float factor = load_element(dy, row * filters + k);
    const float4 low = column[2 * k * vectors], high = column[2 * k * vectors + 1];
    const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] = fmaf(factor, values[e], sum[e]);
  }
  dx.store(thread, eight_fp16(sum));
}

constexpr int few_outputs_gradient_columns = 64;  ///< of dw, a block's
constexpr int few_outputs_gradient_rows = 64;     ///< of dy, between two barriers

struct FewOutputsGradientSums {
  float dy[few_outputs_gradient_rows][most_filters];
  float2 dw[few_outputs_gradient_threads / 32][most_filters][few_outputs_gradient_columns / 2];
  float dbias[few_outputs_gradient_threads / most_filters][most_filters];
};

/// Weight gradient: dw[K, C] = dy^T x; the first block also computes dbias. A warp owns every
/// eighth row, a lane two columns of it. The warps' sums are added in their order.
__global__ void __launch_bounds__(few_outputs_gradient_threads)
    few_outputs_weight_gradient_kernel(const f16* dy, const f16* x, ParameterGradients epilogue, int rows) {
  auto& shared_sums = shared<FewOutputsGradientSums>();
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int first_column = static_cast<int>(blockIdx.x) * few_outputs_gradient_columns;
  const int column = first_column + thread % 32 * 2;
  const int filters = epilogue.filters;
  float2 sum[most_filters] = {};
  float bias = 0.0F;
  for (int first = 0; first < rows; first += few_outputs_gradient_rows) {
    __syncthreads();  // all threads are done reading the rows before
    for (int i = thread; i < few_outputs_gradient_rows * most_filters; i += few_outputs_gradient_threads) {
      const int row = first + i / most_filters, k = i % most_filters;
      shared_sums.dy[i / most_filters][k] = row < rows && k < filters ? load_element(dy, row * filters + k) : 0.0F;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < few_outputs_gradient_rows * 32 / few_outputs_gradient_threads; ++i) {
      const int r = warp + i * few_outputs_gradient_threads / 32;
      if (first + r >= rows || column >= epilogue.channels) continue;
      const f16* pair = x + ((first + r) * epilogue.channels + column);
      const float2 value = {load_element(pair, 0), load_element(pair, 1)};
#pragma unroll
      for (int k = 0; k < most_filters; ++k) {
        sum[k].x = fmaf(shared_sums.dy[r][k], value.x, sum[k].x);
        sum[k].y = fmaf(shared_sums.dy[r][k], value.y, sum[k].y);
      }
    }
    for (int r = thread / most_filters; r < few_outputs_gradient_rows; r += few_outputs_gradient_threads / most_filters)
      bias += shared_sums.dy[r][thread % most_filters];
  }
#pragma unroll
  for (int k = 0; k < most_filters; ++k) shared_sums.dw[warp][k][thread % 32] = sum[k];
  shared_sums.dbias[thread / most_filters][thread % most_filters] = bias;
  __syncthreads();
  for (int i = thread; i < filters * (few_outputs_gradient_columns / 2); i += few_outputs_gradient_threads) {
    const int filter = i / (few_outputs_gradient_columns / 2), pair = i % (few_outputs_gradient_columns / 2);
    if (first_column + 2 * pair >= epilogue.channels) continue;
    float2 total = {0.0F, 0.0F};
    for (int w = 0; w < few_outputs_gradient_threads / 32; ++w) {
      total.x += shared_sums.dw[w][filter][pair].x;
      total.y += shared_sums.dw[w][filter][pair].y;
    }
    epilogue.store_pair(filter, first_column + 2 * pair, total.x, total.y);
  }
  if (blockIdx.x != 0 || thread >= filters) return;
  float total = 0.0F;
  for (const auto& group : shared_sums.dbias) total += group[thread];
  epilogue.store_bias(thread, total);
}

}  // namespace

namespace cuda {

void few_outputs_data_gradient(const DataGradientProduct& g, Workspace&, Stream& stream) {
  expect_fit(few_outputs::fits_gradients(g.shape), "few_outputs", g.shape);
  const ConvolutionSizes& s = g.shape.sizes;
  const int threads = s.n * s.c / 8;
  launch("few_outputs_data_gradient", weight_gradient_work(s), grid_for(threads, few_outputs_gradient_threads), stream,
         few_outputs_data_gradient_kernel, half_gradient(g.dx, g.store), g.dy.fp16().data(), g.w.values().data(), s.k,
         s.c / 8, threads);
}

void few_outputs_weight_gradient(const WeightGradientProduct& g, Workspace&, Stream& stream) {
  expect_fit(few_outputs::fits_gradients(g.shape), "few_outputs", g.shape);
  const ConvolutionSizes& s = g.shape.sizes;
  launch("few_outputs_weight_gradient", weight_gradient_work(s),
         {dim3(static_cast<unsigned>(ceil_div(s.c, few_outputs_gradient_columns))), few_outputs_gradient_threads},
         stream, few_outputs_weight_gradient_kernel, g.dy.fp16().data(), g.x.fp16().data(), parameter_gradients(g),
         s.n);
}

}  // namespace cuda
}  // namespace nibblenet
