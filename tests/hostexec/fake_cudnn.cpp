// Stands in for cuDNN and cuBLASLt: computes the functions that the baseline calls by plain loops
// over host memory. It checks our side: descriptors, orders and transpositions; that an algorithm
// which cannot run gives way to the next; that the fastest one that a graph can hold is taken. It
// is no part of cuDNN or cuBLASLt and is written after their documentation.

#include "tests/hostexec/fake_cudnn.h"

#include <cublasLt.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <thread>

using namespace fake_cudnn;

namespace {

constexpr auto slowness = std::chrono::milliseconds(1);

/// Every product of a convolution: use(y's index, x's index, filter's index).
template <class Use>
void for_each_product(const cudnnTensorStruct& x, const cudnnFilterStruct& f, const cudnnConvolutionStruct& conv,
                      const cudnnTensorStruct& y, Use use) {
  for_each(y, [&](int n, int k, int p, int q) {
    for (int c = 0; c < f.c; ++c)
      for (int r = 0; r < f.r; ++r)
        for (int s = 0; s < f.s; ++s) {
          const int h = p * conv.stride + r - conv.padding, w = q * conv.stride + s - conv.padding;
          if (h >= 0 && h < x.sizes[2] && w >= 0 && w < x.sizes[3])
            use(at(y, n, k, p, q), at(x, n, c, h, w), at(f, k, c, r, s));
        }
  });
}

template <class Performance, class Kind>
void found(const cudnnConvolutionStruct& conv, int* count, Performance* results) {
  const Algorithm order[] = {refuses_graphs, differs_from_run_to_run, refuses_everything, refuses_identity, runs};
  *count = static_cast<int>(std::size(order));
  for (int i = 0; i < *count; ++i) {
    results[i] = {};
    results[i].algo = static_cast<Kind>(order[i]);
    results[i].time = 1e-6F * static_cast<float>(i);  // alone, the slow one is nearly the fastest
    results[i].memory = 128;
    results[i].status = CUDNN_STATUS_SUCCESS;
    const bool differs = order[i] == differs_from_run_to_run || order[i] == refuses_graphs;
    results[i].determinism = differs ? CUDNN_NON_DETERMINISTIC : CUDNN_DETERMINISTIC;
    results[i].mathType = conv.math;
  }
}

cudnnStatus_t ready(int algorithm, const cudnnConvolutionStruct& conv, cudnnDataType_t type, const void* workspace,
                    size_t bytes) {
  if (algorithm == refuses_everything) return CUDNN_STATUS_NOT_SUPPORTED;
  if (workspace == nullptr || bytes < 64) return CUDNN_STATUS_BAD_PARAM;
  if (type == CUDNN_DATA_FLOAT && conv.math != CUDNN_FMA_MATH) return CUDNN_STATUS_BAD_PARAM;  // would be TF32
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

/// How often a slow algorithm ran. Tests read it.
int fake_cudnn_slow_runs = 0;

}  // extern "C"

void fake_cudnn::be_slow() {
  ++fake_cudnn_slow_runs;
  std::this_thread::sleep_for(slowness);
}

extern "C" {

size_t cudnnGetVersion() { return CUDNN_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_NOT_SUPPORTED ? "not supported" : "bad parameter";
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = new cudnnContext;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* tensor) {
  *tensor = new cudnnTensorStruct{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensor4dDescriptorEx(cudnnTensorDescriptor_t tensor, cudnnDataType_t type, int n, int c, int h,
                                           int w, int sn, int sc, int sh, int sw) {
  *tensor = {type, {n, c, h, w}, {sn, sc, sh, sw}};
  return std::min({n, c, h, w}) > 0 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t tensor) {
  delete tensor;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* filters) {
  *filters = new cudnnFilterStruct{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t filters, cudnnDataType_t type,
                                         cudnnTensorFormat_t format, int k, int c, int r, int s) {
  *filters = {type, k, c, r, s};
  return format == CUDNN_TENSOR_NHWC ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t filters) {
  delete filters;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* convolution) {
  *convolution = new cudnnConvolutionStruct{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t convolution, int pad_h, int pad_w, int u,
                                              int v, int dilation_h, int dilation_w, cudnnConvolutionMode_t mode,
                                              cudnnDataType_t compute) {
  *convolution = {pad_h, u, CUDNN_DEFAULT_MATH};
  const bool supported = pad_h == pad_w && u == v && dilation_h == 1 && dilation_w == 1 &&
                         mode == CUDNN_CROSS_CORRELATION && compute == CUDNN_DATA_FLOAT;
  return supported ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t convolution, cudnnMathType_t math) {
  convolution->math = math;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t convolution) {
  delete convolution;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateActivationDescriptor(cudnnActivationDescriptor_t* activation) {
  *activation = new cudnnActivationStruct{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetActivationDescriptor(cudnnActivationDescriptor_t activation, cudnnActivationMode_t mode,
                                           cudnnNanPropagation_t, double) {
  activation->mode = mode;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyActivationDescriptor(cudnnActivationDescriptor_t activation) {
  delete activation;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreatePoolingDescriptor(cudnnPoolingDescriptor_t* pooling) {
  *pooling = new cudnnPoolingStruct{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetPooling2dDescriptor(cudnnPoolingDescriptor_t pooling, cudnnPoolingMode_t mode,
                                          cudnnNanPropagation_t, int size_h, int size_w, int pad_h, int pad_w,
                                          int stride_h, int stride_w) {
  *pooling = {size_h, pad_h, stride_h};
  const bool supported =
      mode == CUDNN_POOLING_MAX_DETERMINISTIC && size_h == size_w && pad_h == pad_w && stride_h == stride_w;
  return supported ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}
cudnnStatus_t cudnnDestroyPoolingDescriptor(cudnnPoolingDescriptor_t pooling) {
  delete pooling;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnFindConvolutionForwardAlgorithm(cudnnHandle_t, const cudnnTensorDescriptor_t x,
                                                   const cudnnFilterDescriptor_t w,
                                                   const cudnnConvolutionDescriptor_t conv,
                                                   const cudnnTensorDescriptor_t y, const int, int* count,
                                                   cudnnConvolutionFwdAlgoPerf_t* results) {
  if (!fit(*x, *w, *conv, *y)) return CUDNN_STATUS_BAD_PARAM;
  found<cudnnConvolutionFwdAlgoPerf_t, cudnnConvolutionFwdAlgo_t>(*conv, count, results);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnFindConvolutionBackwardDataAlgorithm(cudnnHandle_t, const cudnnFilterDescriptor_t w,
                                                        const cudnnTensorDescriptor_t dy,
                                                        const cudnnConvolutionDescriptor_t conv,
                                                        const cudnnTensorDescriptor_t dx, const int, int* count,
                                                        cudnnConvolutionBwdDataAlgoPerf_t* results) {
  if (!fit(*dx, *w, *conv, *dy)) return CUDNN_STATUS_BAD_PARAM;
  found<cudnnConvolutionBwdDataAlgoPerf_t, cudnnConvolutionBwdDataAlgo_t>(*conv, count, results);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnFindConvolutionBackwardFilterAlgorithm(cudnnHandle_t, const cudnnTensorDescriptor_t x,
                                                          const cudnnTensorDescriptor_t dy,
                                                          const cudnnConvolutionDescriptor_t conv,
                                                          const cudnnFilterDescriptor_t dw, const int, int* count,
                                                          cudnnConvolutionBwdFilterAlgoPerf_t* results) {
  if (!fit(*x, *dw, *conv, *dy)) return CUDNN_STATUS_BAD_PARAM;
  found<cudnnConvolutionBwdFilterAlgoPerf_t, cudnnConvolutionBwdFilterAlgo_t>(*conv, count, results);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnConvolutionBiasActivationForward(
    cudnnHandle_t handle, const void* alpha1, const cudnnTensorDescriptor_t x_desc, const void* x,
    const cudnnFilterDescriptor_t w_desc, const void* w, const cudnnConvolutionDescriptor_t conv,
    cudnnConvolutionFwdAlgo_t algorithm, void* workspace, size_t bytes, const void* alpha2,
    const cudnnTensorDescriptor_t, const void*, const cudnnTensorDescriptor_t bias_desc, const void* bias,
    const cudnnActivationDescriptor_t activation, const cudnnTensorDescriptor_t y_desc, void* y) {
  if (const cudnnStatus_t status = ready(algorithm, *conv, x_desc->type, workspace, bytes); status != 0) return status;
  if (activation->mode == CUDNN_ACTIVATION_IDENTITY && algorithm == static_cast<int>(refuses_identity))
    return CUDNN_STATUS_NOT_SUPPORTED;
  const bool outside = algorithm == static_cast<int>(refuses_graphs);
  if (outside ? handle->stream->capturing() : conv->stride == stride_of_no_graph) return CUDNN_STATUS_NOT_SUPPORTED;
  if (fails(*x_desc)) return CUDNN_STATUS_EXECUTION_FAILED;
  if (!fit(*x_desc, *w_desc, *conv, *y_desc) || *static_cast<const float*>(alpha2) != 0.0F ||
      bias_desc->type != y_desc->type || bias_desc->sizes[1] != y_desc->sizes[1])
    return CUDNN_STATUS_BAD_PARAM;
  const FusedConvolution fused = {
      *x_desc, *w_desc, *conv, *y_desc, *static_cast<const float*>(alpha1), activation->mode == CUDNN_ACTIVATION_RELU};
  const bool slow = algorithm == static_cast<int>(differs_from_run_to_run) || conv->stride == stride_of_slow_algorithms;
  handle->stream->perform([=] {
    if (slow) be_slow();
    fused.run(x, w, bias, y);
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t, const void*, const cudnnFilterDescriptor_t w_desc,
                                           const void* w, const cudnnTensorDescriptor_t dy_desc, const void* dy,
                                           const cudnnConvolutionDescriptor_t conv,
                                           cudnnConvolutionBwdDataAlgo_t algorithm, void* workspace, size_t bytes,
                                           const void*, const cudnnTensorDescriptor_t dx_desc, void* dx) {
  if (const cudnnStatus_t status = ready(algorithm, *conv, dx_desc->type, workspace, bytes); status != 0) return status;
  if (algorithm == static_cast<int>(differs_from_run_to_run)) return CUDNN_STATUS_BAD_PARAM;
  if (!fit(*dx_desc, *w_desc, *conv, *dy_desc)) return CUDNN_STATUS_BAD_PARAM;
  auto* sums = static_cast<float*>(dx);
  for_each(*dx_desc, [&](int n, int c, int h, int column) { sums[at(*dx_desc, n, c, h, column)] = 0; });
  for_each_product(*dx_desc, *w_desc, *conv, *dy_desc, [&](int64_t y, int64_t x, int64_t tap) {
    sums[x] += static_cast<const float*>(dy)[y] * static_cast<const float*>(w)[tap];
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t, const void*, const cudnnTensorDescriptor_t x_desc,
                                             const void* x, const cudnnTensorDescriptor_t dy_desc, const void* dy,
                                             const cudnnConvolutionDescriptor_t conv,
                                             cudnnConvolutionBwdFilterAlgo_t algorithm, void* workspace, size_t bytes,
                                             const void*, const cudnnFilterDescriptor_t dw_desc, void* dw) {
  if (const cudnnStatus_t status = ready(algorithm, *conv, x_desc->type, workspace, bytes); status != 0) return status;
  if (algorithm == static_cast<int>(differs_from_run_to_run)) return CUDNN_STATUS_BAD_PARAM;
  if (!fit(*x_desc, *dw_desc, *conv, *dy_desc)) return CUDNN_STATUS_BAD_PARAM;
  auto* sums = static_cast<float*>(dw);
  std::fill_n(sums, int64_t{dw_desc->k} * dw_desc->c * dw_desc->r * dw_desc->s, 0.0F);
  for_each_product(*x_desc, *dw_desc, *conv, *dy_desc, [&](int64_t y, int64_t pixel, int64_t tap) {
    sums[tap] += static_cast<const float*>(dy)[y] * static_cast<const float*>(x)[pixel];
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnConvolutionBackwardBias(cudnnHandle_t, const void*, const cudnnTensorDescriptor_t dy_desc,
                                           const void* dy, const void*, const cudnnTensorDescriptor_t db_desc,
                                           void* db) {
  if (db_desc->sizes[1] != dy_desc->sizes[1]) return CUDNN_STATUS_BAD_PARAM;
  auto* sums = static_cast<float*>(db);
  std::fill_n(sums, db_desc->sizes[1], 0.0F);
  for_each(*dy_desc,
           [&](int n, int c, int h, int w) { sums[c] += static_cast<const float*>(dy)[at(*dy_desc, n, c, h, w)]; });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnTransformTensor(cudnnHandle_t handle, const void*, const cudnnTensorDescriptor_t from, const void* x,
                                   const void*, const cudnnTensorDescriptor_t to, void* y) {
  if (!std::equal(from->sizes, from->sizes + 4, to->sizes)) return CUDNN_STATUS_BAD_PARAM;
  handle->stream->perform([=, from = *from, to = *to] {
    for_each(from, [&](int n, int c, int h, int w) {
      store(to.type, y, at(to, n, c, h, w), load(from.type, x, at(from, n, c, h, w)));
    });
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnActivationForward(cudnnHandle_t handle, cudnnActivationDescriptor_t, const void*,
                                     const cudnnTensorDescriptor_t x_desc, const void* x, const void*,
                                     const cudnnTensorDescriptor_t y_desc, void* y) {
  handle->stream->perform([=, from = *x_desc, to = *y_desc] {
    for_each(from, [&](int n, int c, int h, int w) {
      const float value = load(from.type, x, at(from, n, c, h, w));
      store(to.type, y, at(to, n, c, h, w), value > 0 || std::isnan(value) ? value : 0.0F);
    });
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnActivationBackward(cudnnHandle_t, cudnnActivationDescriptor_t, const void*,
                                      const cudnnTensorDescriptor_t, const void*, const cudnnTensorDescriptor_t dy_desc,
                                      const void* dy, const cudnnTensorDescriptor_t, const void* x, const void*,
                                      const cudnnTensorDescriptor_t dx_desc, void* dx) {
  for_each(*dx_desc, [&](int n, int c, int h, int w) {
    const int64_t i = at(*dx_desc, n, c, h, w);
    store(dx_desc->type, dx, i, load(dx_desc->type, x, i) > 0 ? load(dy_desc->type, dy, i) : 0.0F);
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnPoolingForward(cudnnHandle_t handle, const cudnnPoolingDescriptor_t pooling, const void*,
                                  const cudnnTensorDescriptor_t x_desc, const void* x, const void*,
                                  const cudnnTensorDescriptor_t y_desc, void* y) {
  handle->stream->perform([=, window = *pooling, from = *x_desc, to = *y_desc] {
    for_each(to, [&](int n, int c, int p, int q) {
      float largest = -std::numeric_limits<float>::infinity();
      for (int r = 0; r < window.size; ++r)
        for (int s = 0; s < window.size; ++s) {
          const int h = p * window.stride + r - window.padding, w = q * window.stride + s - window.padding;
          if (h < 0 || h >= from.sizes[2] || w < 0 || w >= from.sizes[3]) continue;
          const float value = load(from.type, x, at(from, n, c, h, w));
          if (value > largest || std::isnan(value)) largest = value;
        }
      store(to.type, y, at(to, n, c, p, q), largest);
    });
  });
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"

namespace {

struct Matmul {
  cublasOperation_t left = CUBLAS_OP_N, right = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  cudaDataType_t bias_type = CUDA_R_32F;
  const void* bias = nullptr;
};
struct Matrix {
  cudaDataType_t type;
  int64_t rows, columns, stride;
};

Matmul& of(cublasLtMatmulDesc_t matmul) { return *reinterpret_cast<Matmul*>(matmul); }
const Matrix& of(cublasLtMatrixLayout_t layout) { return *reinterpret_cast<const Matrix*>(layout); }

cudnnDataType_t element(cudaDataType_t type) { return type == CUDA_R_32F ? CUDNN_DATA_FLOAT : CUDNN_DATA_HALF; }

/// Element (row, column) of op(matrix), which is stored column by column.
float operand(const Matrix& m, const void* data, cublasOperation_t op, int64_t row, int64_t column) {
  if (op == CUBLAS_OP_T) std::swap(row, column);
  return load(element(m.type), data, column * m.stride + row);
}

int64_t rows_of(const Matrix& m, cublasOperation_t op) { return op == CUBLAS_OP_T ? m.columns : m.rows; }
int64_t columns_of(const Matrix& m, cublasOperation_t op) { return op == CUBLAS_OP_T ? m.rows : m.columns; }

struct Product {
  Matmul matmul;
  Matrix left, right, result;
  float factor;

  bool with_bias() const { return matmul.epilogue != CUBLASLT_EPILOGUE_DEFAULT; }
  bool fits() const {
    return rows_of(left, matmul.left) == result.rows && columns_of(right, matmul.right) == result.columns &&
           rows_of(right, matmul.right) == columns_of(left, matmul.left) &&
           (!with_bias() || matmul.bias_type == result.type);
  }
  void run(const void* a, const void* b, void* d) const {
    for (int64_t column = 0; column < result.columns; ++column)
      for (int64_t row = 0; row < result.rows; ++row) {
        float sum = 0;
        for (int64_t k = 0; k < columns_of(left, matmul.left); ++k)
          sum += operand(left, a, matmul.left, row, k) * operand(right, b, matmul.right, k, column);
        float value = factor * sum;
        if (with_bias()) value += load(element(matmul.bias_type), matmul.bias, row);
        if (matmul.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS && value < 0) value = 0;
        store(element(result.type), d, column * result.stride + row, value);
      }
  }
};

template <class Value>
void read(Value& to, const void* from) {
  to = *static_cast<const Value*>(from);
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
const char* cublasLtGetStatusString(cublasStatus_t) { return "invalid value"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* matmul, cublasComputeType_t compute, cudaDataType_t) {
  *matmul = reinterpret_cast<cublasLtMatmulDesc_t>(new Matmul);
  return compute == CUBLAS_COMPUTE_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmul) {
  delete &of(matmul);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmul, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      read(of(matmul).left, value);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_TRANSB:
      read(of(matmul).right, value);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      read(of(matmul).epilogue, value);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      read(of(matmul).bias_type, value);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      read(of(matmul).bias, value);
      return CUBLAS_STATUS_SUCCESS;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Matrix{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Matrix*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new int);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<int*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
  const Algorithm order[] = {refuses_graphs, differs_from_run_to_run, runs};
  *count = std::min(wanted, static_cast<int>(std::size(order)));
  for (int i = 0; i < *count; ++i) {
    results[i] = {};
    results[i].algo.data[0] = order[i];
    results[i].workspaceSize = 64;
  }
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t matmul, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void*, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t bytes, cudaStream_t stream) {
  const Product product = {of(matmul), of(a_layout), of(b_layout), of(d_layout), *static_cast<const float*>(alpha)};
  if (!product.fits() || *static_cast<const float*>(beta) != 0.0F || workspace == nullptr || bytes < 64)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (algorithm->data[0] == refuses_graphs && stream->capturing()) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool slow = algorithm->data[0] == differs_from_run_to_run;
  stream->perform([=] {
    if (slow) be_slow();
    product.run(a, b, d);
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
