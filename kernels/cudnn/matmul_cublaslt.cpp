#include "kernels/cudnn/matmul_cublaslt.h"

#include <bit>
#include <limits>

#include "kernels/cudnn/replayed_time.h"

namespace nibblenet {
namespace {

constexpr size_t most_workspace = size_t{32} << 20;
constexpr int most_choices = 8;

/// Alignment of an address: the largest power of two up to 256 that divides it.
int64_t alignment(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 256;
  return int64_t{1} << std::countr_zero(bits);
}

/// cuBLASLt stores matrices column by column: a row-major matrix is its transpose there.
Descriptor<cublasLtMatrixLayout_t, cublasStatus_t> layout(Precision precision, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t handle = nullptr;
  check(cublas_lt().create_layout(&handle, cuda_type(precision), static_cast<uint64_t>(rows),
                                  static_cast<uint64_t>(columns), rows),
        "describing a matrix");
  return {handle, cublas_lt().destroy_layout};
}

template <class Value>
void set(cublasLtMatmulDesc_t matmul, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check(cublas_lt().set_matmul(matmul, attribute, &value, sizeof value), "describing a matrix product");
}

template <class Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  check(cublas_lt().set_preference(preference, attribute, &value, sizeof value), "choosing a matrix product");
}

cublasLtEpilogue_t epilogue_of(bool with_bias, Epilogue epilogue) {
  if (!with_bias) return CUBLASLT_EPILOGUE_DEFAULT;
  return epilogue == Epilogue::relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
}

}  // namespace

MatmulCublasLt::MatmulCublasLt(Stream& stream, WorkspaceOf workspace)
    : stream_(stream),
      workspace_(std::move(workspace)),
      handle_(make_descriptor(cublas_lt().create, cublas_lt().destroy)) {}

// c' = b' a' of the transposes: cuBLASLt's left operand is our right one.
MatmulCublasLt::Plan MatmulCublasLt::make_plan(const Key& key) {
  const auto [m, n, k, a_transposed, b_transposed, in, out, epilogue, align_a, align_b, align_c] = key;
  cublasLtMatmulDesc_t matmul = nullptr;
  check(cublas_lt().create_matmul(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a matrix product");
  Plan plan{{matmul, cublas_lt().destroy_matmul},
            b_transposed ? layout(in, k, n) : layout(in, n, k),
            a_transposed ? layout(in, m, k) : layout(in, k, m),
            layout(out, n, m),
            {}};
  set(matmul, CUBLASLT_MATMUL_DESC_TRANSA, b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(matmul, CUBLASLT_MATMUL_DESC_TRANSB, a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (epilogue != CUBLASLT_EPILOGUE_DEFAULT) set(matmul, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_type(out));

  const auto preference = make_descriptor(cublas_lt().create_preference, cublas_lt().destroy_preference);
  set(preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, most_workspace);
  set(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(align_b));
  set(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(align_a));
  set(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(align_c));
  set(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(align_c));
  plan.choices.resize(epilogue == CUBLASLT_EPILOGUE_DEFAULT ? 1 : most_choices);
  int count = 0;
  check(cublas_lt().get_heuristic(handle_.get(), matmul, plan.left.get(), plan.right.get(), plan.result.get(),
                                  plan.result.get(), preference.get(), static_cast<int>(plan.choices.size()),
                                  plan.choices.data(), &count),
        "choosing a matrix product");
  if (count == 0) fail<CudaError>("cuBLASLt has no product of {} x {} by {} x {} matrices", m, k, k, n);
  plan.choices.resize(static_cast<size_t>(count));
  return plan;
}

void MatmulCublasLt::keep_fastest(Plan& plan,
                                  const std::function<cublasStatus_t(const cublasLtMatmulHeuristicResult_t&)>& run) {
  size_t fastest = 0;
  float least = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < plan.choices.size(); ++i) {
    const std::optional<float> time =
        replayed_time(stream_, [&] { return run(plan.choices[i]) == CUBLAS_STATUS_SUCCESS; });
    if (!time || *time >= least) continue;
    least = *time;
    fastest = i;
  }
  plan.choices = {plan.choices[fastest]};
}

void MatmulCublasLt::product(void* c, const MatrixOperand& a, const MatrixOperand& b, int64_t m, int64_t n, int64_t k,
                             Precision in, Precision out, float factor, const void* bias, Epilogue epilogue) {
  const Key key(m, n, k, a.transposed, b.transposed, in, out, epilogue_of(bias != nullptr, epilogue), alignment(a.data),
                alignment(b.data), alignment(c));
  auto known = plans_.find(key);
  if (known == plans_.end()) known = plans_.emplace(key, make_plan(key)).first;
  Plan& plan = known->second;
  if (bias != nullptr) set(plan.matmul.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  constexpr float zero = 0.0F;
  const auto run = [&](const cublasLtMatmulHeuristicResult_t& choice) {
    return cublas_lt().matmul(handle_.get(), plan.matmul.get(), &factor, b.data, plan.left.get(), a.data,
                              plan.right.get(), &zero, c, plan.result.get(), c, plan.result.get(), &choice.algo,
                              workspace_(choice.workspaceSize), choice.workspaceSize, stream_.get());
  };
  if (plan.choices.size() > 1) keep_fastest(plan, run);
  check(run(plan.choices.front()), "matrix product");
}

}  // namespace nibblenet
