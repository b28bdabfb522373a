// The plain products: convolutions as implicit GEMM (Chetlur et al. 2014, arXiv 1410.0759, section
// 3). A linear layer is a convolution of 1 x 1 images.

#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/dispatch.cuh"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/operands.cuh"
#include "kernels/cuda/gemm/plain.cuh"
#include "kernels/cuda/weights/half_copies.cuh"

namespace nibblenet {
namespace {

int tiles(int size) { return ceil_div(size, plain_tile); }

template <class Weights>
void float32_forward(const ForwardProduct& f, const Weights& weights, const Work& work, Stream& stream) {
  const ConvolutionSizes& s = f.shape.sizes;
  const Grid grid{dim3(tiles(s.outputs()), tiles(s.k)), 256};
  launch("conv2d_forward", work, grid, stream,
         float32_product_kernel<FilterOperand<Weights>, RowOperand<Windows<float>>, BiasEpilogue<float*>>,
         FilterOperand<Weights>{weights}, RowOperand<Windows<float>>{{s, f.x.floats().data()}},
         epilogue_of(f.y.floats().data(), f, 1.0F), s.length(), s.length());
}

template <class T>
void float16_forward(TensorView<T> y, const ForwardProduct& f, const Work& work, Stream& stream) {
  const ConvolutionSizes& s = f.shape.sizes;
  const bool aligned = s.c % 8 == 0 && f.shape.x_alignment == 16;
  const Grid grid{dim3(tiles(s.outputs()), tiles(s.k)), 128};
  with_half_operands(y.data(), f,
                     [&]<class Weights>(const Weights& weights, const BiasEpilogue<T*>& epilogue, float factor) {
                       launch("conv2d_forward", work, grid, stream, half_product_kernel<Weights, T*>, weights,
                              Windows<f16>{s, f.x.fp16().data()}, epilogue, s.length(), factor, aligned);
                     });
}

/// Operand of the data gradient: filters as [C, R S K], the weight of each output channel and tap
/// for an input channel.
struct TransposedFilters {
  ConvolutionSizes sizes;
  const float* w;  ///< [K, C, taps]
  __device__ void prepare(CodeValues&) const {}
  __device__ void fill(int first, int k, const CodeValues&, float (&to)[plain_depth][plain_tile + 1]) const {
    fill_along_rows(to, [&](int row, int step, float(&v)[8]) {
      const int tap = (k + step) / sizes.k;
      const int filter = k + step - tap * sizes.k;
      const float* from = w + static_cast<int64_t>(filter) * sizes.length() + tap;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int channel = first + row + e;
        v[e] = tap < sizes.taps() && channel < sizes.c ? from[static_cast<int64_t>(channel) * sizes.taps()] : 0.0F;
      }
    });
  }
};

/// Epilogue of the data gradient: dx [input pixels, C].
template <class T>
struct PlainEpilogue {
  T* y;
  int rows;
  int columns;
  __device__ void store(int i, int j, int, float sum) const {
    if (i < rows && j < columns) store_element(y, static_cast<int64_t>(j) * rows + i, sum);
  }
};

/// Operand of the weight gradient: x as [R S C, output pixels]. The reduction runs over pixels.
template <class T>
struct TransposedWindows {
  Windows<T> windows;
  __device__ void prepare(CodeValues&) const {}
  __device__ void fill(int first, int k, const CodeValues&, float (&to)[plain_depth][plain_tile + 1]) const {
    fill_along_rows(to, [&](int row, int step, float(&v)[8]) { windows.load8(windows.row(k + step), first + row, v); });
  }
};

/// Operand of the weight gradient: dy as [K, output pixels].
template <class T>
struct TransposedOutputs {
  const T* dy;  ///< [pixels, K]
  int rows;     ///< K
  int pixels;
  __device__ void fill(int first, int k, const CodeValues&, float (&to)[plain_depth][plain_tile + 1]) const {
    fill_along_rows(to, [&](int row, int step, float(&v)[8]) {
      const T* from = dy + static_cast<int64_t>(k + step) * rows;
#pragma unroll
      for (int e = 0; e < 8; ++e)
        v[e] = k + step < pixels && first + row + e < rows ? load_element(from, first + row + e) : 0.0F;
    });
  }
};

/// Partial sums over splits of the pixels, [splits, K, R S C]: i is the weight, j the filter.
struct PartialEpilogue {
  float* partial;
  int length;
  int filters;
  __device__ void store(int i, int j, int split, float sum) const {
    if (i < length && j < filters) partial[(static_cast<int64_t>(split) * filters + j) * length + i] = sum;
  }
};

/// Stores whole sums in dw [K, C, taps].
struct GradientEpilogue {
  float* dw;
  int channels;
  int taps;
  int filters;
  __device__ void store(int i, int j, int, float sum) const {
    if (i < channels * taps && j < filters) dw[torch_index(j, i, channels, taps)] = sum;
  }
};

/// dw[filter, c, tap] = sum over the splits in their order. One thread per weight.
__global__ void sum_splits_kernel(float* dw, const float* partial, int splits, int filters, int channels, int taps) {
  const int64_t length = static_cast<int64_t>(channels) * taps;
  const int64_t count = filters * length;
  for_each_index(count, [&](int64_t i) {
    float sum = 0.0F;
    for (int split = 0; split < splits; ++split) sum += partial[split * count + i];
    dw[torch_index(static_cast<int>(i / length), static_cast<int>(i % length), channels, taps)] = sum;
  });
}

/// Column sums of a split: sums[split, k] = sum of column k of dy [rows, K] over the split's rows.
/// Block (x, y) owns 128 columns of split y.
template <class T>
__global__ void column_sums_kernel(float* sums, const T* dy, int rows, int columns, int rows_of_split) {
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= columns) return;
  const int begin = static_cast<int>(blockIdx.y) * rows_of_split;
  const int end = begin + rows_of_split < rows ? begin + rows_of_split : rows;
  float sum = 0.0F;
  for (int row = begin; row < end; ++row) sum += load_element(dy, static_cast<int64_t>(row) * columns + column);
  sums[static_cast<int64_t>(blockIdx.y) * columns + column] = sum;
}

template <class T>
void bias_gradient(TensorView<float> dbias, const T* dy, int rows, int columns, Workspace& workspace, Stream& stream) {
  constexpr unsigned threads = 128;
  const auto blocks = static_cast<unsigned>(ceil_div(columns, 128));
  const int splits = std::clamp(rows / 256, 1, 256);
  const int rows_of_split = ceil_div(rows, splits);
  float* sums = splits == 1 ? dbias.data() : workspace.floats(static_cast<size_t>(splits) * columns);
  const double bytes = static_cast<double>(sizeof(T)) * static_cast<double>(rows) * columns;
  launch("bias_gradient", {.bytes = bytes}, {dim3(blocks, splits), threads}, stream, column_sums_kernel<T>, sums, dy,
         rows, columns, rows_of_split);
  if (splits > 1)
    launch("bias_gradient_splits", {}, {dim3(blocks), threads}, stream, column_sums_kernel<float>, dbias.data(), sums,
           splits, columns, splits);
}

template <class T>
void backward_weight(TensorView<float> dw, TensorView<float> dbias, const T* dy, const T* x, const ConvolutionSizes& s,
                     Workspace& workspace, Stream& stream) {
  // Small gradients of many pixels leave most of the GPU idle: split the pixels, by a number that
  // depends on the shape alone.
  constexpr int pixels_at_least = 512;
  const int splits = split_k::plain.splits(tiles(s.length()) * tiles(s.k), s.outputs() / pixels_at_least);
  const int depth = (s.outputs() / splits + plain_depth) / plain_depth * plain_depth;
  const auto grid = [&](int z) { return Grid{dim3(tiles(s.k), tiles(s.length()), z), 256}; };
  const Work work = work_of(s, static_cast<double>(dw.span().size_bytes()), sizeof(T));
  const TransposedWindows<T> left{{s, x}};
  const TransposedOutputs<T> right{dy, s.k, s.outputs()};
  if (splits == 1) {
    launch("conv2d_backward_weight", work, grid(1), stream,
           float32_product_kernel<TransposedWindows<T>, TransposedOutputs<T>, GradientEpilogue>, left, right,
           GradientEpilogue{dw.data(), s.c, s.taps(), s.k}, s.outputs(), std::max(s.outputs(), 1));
  } else {
    float* partial = workspace.floats(static_cast<size_t>(splits) * static_cast<size_t>(dw.elements()));
    launch("conv2d_backward_weight", work, grid(splits), stream,
           float32_product_kernel<TransposedWindows<T>, TransposedOutputs<T>, PartialEpilogue>, left, right,
           PartialEpilogue{partial, s.length(), s.k}, s.outputs(), depth);
    launch("conv2d_backward_weight_splits", {}, grid_for(dw.elements()), stream, sum_splits_kernel, dw.data(), partial,
           splits, s.k, s.c, s.taps());
  }
  bias_gradient(dbias, dy, s.outputs(), s.k, workspace, stream);
}

}  // namespace

namespace cuda {

void plain_forward(const ForwardProduct& f, Workspace&, Stream& stream) {
  const ConvolutionSizes& s = f.shape.sizes;
  const Work work =
      work_of(s, static_cast<double>(f.w.resident().total()), static_cast<double>(bytes_of(f.x.precision())));
  if (f.x.precision() == Precision::float16) {
    if (f.y.precision() == Precision::float16)
      float16_forward(f.y.fp16(), f, work, stream);
    else
      float16_forward(f.y.floats(), f, work, stream);
  } else if (f.w.form() == WeightForm::packed) {
    float32_forward(f, packed_operand(f.w, filter_sizes(s)), work, stream);
  } else if (f.w.form() == WeightForm::float32) {
    float32_forward(f, Float32Weights{filter_sizes(s), f.w.floats().data()}, work, stream);
  } else {
    throw Error("float32 activations need packed or float32 weights, got float16");
  }
}

void plain_data_gradient(const DataGradientProduct& g, Workspace&, Stream& stream) {
  const ConvolutionSizes& s = g.shape.sizes;
  const TensorView<const float> w = g.w.values();
  const int length = s.taps() * s.k;
  const Grid grid{dim3(tiles(s.inputs()), tiles(s.c)), 256};
  with_pointers_of_one(g.dx, g.dy, [&]<class T>(T* to, const T* from) {
    launch("conv2d_backward_data", work_of(s, static_cast<double>(w.span().size_bytes()), sizeof(T)), grid, stream,
           float32_product_kernel<TransposedFilters, RowOperand<Contributions<T>>, PlainEpilogue<T>>,
           TransposedFilters{s, w.data()}, RowOperand<Contributions<T>>{{s, from}},
           PlainEpilogue<T>{to, s.c, s.inputs()}, length, length);
  });
}

void plain_weight_gradient(const WeightGradientProduct& g, Workspace& workspace, Stream& stream) {
  const ConvolutionSizes& s = g.shape.sizes;
  if (g.dy.precision() == Precision::float16)
    backward_weight(g.dw, g.dbias, g.dy.fp16().data(), g.x.fp16().data(), s, workspace, stream);
  else
    backward_weight(g.dw, g.dbias, g.dy.floats().data(), g.x.floats().data(), s, workspace, stream);
}

}  // namespace cuda
}  // namespace nibblenet
