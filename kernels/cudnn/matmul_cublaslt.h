#pragma once

#include <map>
#include <tuple>

#include "kernels/cudnn/convolution_cudnn.h"

namespace nibblenet {

/// A dense row-major matrix as an operand.
struct MatrixOperand {
  const void* data;
  bool transposed;  ///< stored column by column
};

/// Products of dense row-major matrices by cuBLASLt with float32 sums, never in TF32. Products with
/// a bias belong to forward passes: they take the fastest algorithm that cuBLASLt's heuristic
/// names, timed on the first call's operands and replayed from a graph. Others take the first
/// algorithm.
class MatmulCublasLt {
 public:
  /// Products on this stream, with workspace of `workspace`.
  MatmulCublasLt(Stream& stream, WorkspaceOf workspace);

  /// c[m, n] = epilogue(factor a[m, k] b[k, n] + bias[n]). a and b have precision `in`, c and the
  /// bias `out`. `bias` may be null; then there is no epilogue.
  void product(void* c, const MatrixOperand& a, const MatrixOperand& b, int64_t m, int64_t n, int64_t k, Precision in,
               Precision out, float factor = 1.0F, const void* bias = nullptr, Epilogue epilogue = Epilogue::none);

 private:
  using Layout = Descriptor<cublasLtMatrixLayout_t, cublasStatus_t>;
  struct Plan {
    Descriptor<cublasLtMatmulDesc_t, cublasStatus_t> matmul;
    Layout left, right, result;
    std::vector<cublasLtMatmulHeuristicResult_t> choices;
  };
  /// Key of a chosen algorithm: sizes, precisions, transpositions, epilogue and alignments.
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, bool, Precision, Precision, cublasLtEpilogue_t, int64_t,
                         int64_t, int64_t>;
  Plan make_plan(const Key& key);
  void keep_fastest(Plan& plan, const std::function<cublasStatus_t(const cublasLtMatmulHeuristicResult_t&)>& run);

  Stream& stream_;
  WorkspaceOf workspace_;
  Descriptor<cublasLtHandle_t, cublasStatus_t> handle_;
  std::map<Key, Plan> plans_;
};

}  // namespace nibblenet
