#pragma once

#include <array>
#include <map>

#include "kernels/cudnn/convolution_cudnn.h"

namespace nibblenet {

/// A dense row-major matrix as an operand.
struct MatrixOperand {
  const void* data;
  bool transposed;  ///< stored with its rows as columns
};

/// Products of dense row-major matrices by cuBLASLt with float32 sums, never in TF32. Those with a bias, which are of
/// forward passes, take the fastest of the algorithms that its heuristic names, timed on the first call's operands as a
/// graph replays them; others take the first.
class MatmulCublasLt {
 public:
  MatmulCublasLt(Stream& stream, WorkspaceOf workspace);

  /// c[m, n] = epilogue(factor a[m, k] b[k, n] + bias[n]). a and b are of precision `in`, c and the bias of `out`;
  /// `bias` may be null, and then there is no epilogue.
  void product(void* c, const MatrixOperand& a, const MatrixOperand& b, int64_t m, int64_t n, int64_t k, Precision in,
               Precision out, float factor = 1.0F, const void* bias = nullptr, Epilogue epilogue = Epilogue::none);

 private:
  using Layout = Descriptor<cublasLtMatrixLayout_t, cublasStatus_t>;
  struct Plan {
    Descriptor<cublasLtMatmulDesc_t, cublasStatus_t> matmul;
    Layout left, right, result;
    std::vector<cublasLtMatmulHeuristicResult_t> choices;
  };
  /// Sizes, precisions, transpositions, epilogue and alignments: what an algorithm is chosen by.
  using Key = std::array<int64_t, 11>;
  Plan make_plan(const Key& key);
  void keep_fastest(Plan& plan, const std::function<cublasStatus_t(const cublasLtMatmulHeuristicResult_t&)>& run);

  Stream& stream_;
  WorkspaceOf workspace_;
  Descriptor<cublasLtHandle_t, cublasStatus_t> handle_;
  std::map<Key, Plan> plans_;
};

}  // namespace nibblenet
