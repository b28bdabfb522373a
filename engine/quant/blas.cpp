#include "engine/quant/blas.h"

#include <cblas.h>
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <vector>

#include "engine/core/error.h"

// LAPACK's own names; OpenBLAS holds them, but Debian's package of it has no header for them. Matrices are
// column-major, the last arguments are the lengths of the character arguments.
extern "C" {
void spotrf_(const char* uplo, const blasint* n, float* a, const blasint* lda, blasint* info, size_t);
void strtri_(const char* uplo, const char* diag, const blasint* n, float* a, const blasint* lda, blasint* info, size_t,
             size_t);
}

// OpenBLAS chooses its kernels by the processor's model, and takes those of 2004 for one that is newer than itself;
// oneDNN chooses by instructions. So the long products are oneDNN's, and triangles of a block's size are OpenBLAS's.

namespace nibblenet::blas {
namespace {

constexpr int64_t block = 128;
constexpr int64_t rows_at_once = 1024;  // of products with a triangle, of which half a square is for nothing

/// The builds of OpenBLAS that have threads of their own follow OpenMP's number, too.
void follow_openmp() { openblas_set_num_threads(omp_get_max_threads()); }

blasint size(int64_t value) { return static_cast<blasint>(value); }

/// c := alpha op(a) op(b) + beta c, op(a)[m, k], op(b)[k, n].
void multiply(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
              int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0 || k == 0) return;
  const dnnl_status_t status = dnnl_sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success)
    fail<Error>("oneDNN refuses a product of {} x {} x {}: status {}", m, k, n, static_cast<int>(status));
}

/// a = l l^T by and in its lower triangle. False when a is not positive definite.
bool cholesky(float* a, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    float* diagonal = a + begin * n + begin;
    multiply('N', 'T', n - begin, end - begin, begin, -1.0F, a + begin * n, n, a + begin * n, n, 1.0F, diagonal, n);
    const blasint columns = size(end - begin), stride = size(n);
    blasint info = 0;
    // What is lower in rows is upper in columns: LAPACK finds v with a = v^T v, and v in columns is l in rows.
    spotrf_("U", &columns, diagonal, &stride, &info, 1);
    if (info < 0) fail<Error>("spotrf refuses its argument {}", -info);
    if (info > 0) return false;
    if (end < n)
      cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, size(n - end), columns, 1.0F,
                  diagonal, stride, a + end * n + begin, stride);
  }
  return true;
}

/// l becomes x = l^-1 with zeros above, block column by block column from the last: x_ij = -(sum over j < k <= i of
/// x_ik l_kj) x_jj.
bool invert_lower(float* l, int64_t n) {
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i) std::fill(l + i * n + i + 1, l + (i + 1) * n, 0.0F);
  std::vector<float> sums(static_cast<size_t>(std::min(rows_at_once, n) * block));
  for (int64_t begin = (n - 1) / block * block; begin >= 0; begin -= block) {
    const int64_t end = std::min(begin + block, n), width = end - begin;
    float* diagonal = l + begin * n + begin;
    const blasint columns = size(width), stride = size(n);
    blasint info = 0;
    strtri_("U", "N", &columns, diagonal, &stride, &info, 1, 1);
    if (info < 0) fail<Error>("strtri refuses its argument {}", -info);
    if (info > 0) return false;
    for (int64_t last = n; last > end;) {  // upwards: the rows above need those of l that are still there
      const int64_t first = std::max(end, last - rows_at_once);
      multiply('N', 'N', last - first, width, last - end, 1.0F, l + first * n + end, n, l + end * n + begin, n, 0.0F,
               sums.data(), width);
      multiply('N', 'N', last - first, width, width, -1.0F, sums.data(), width, diagonal, n, 0.0F,
               l + first * n + begin, n);
      last = first;
    }
  }
  return true;
}

}  // namespace

void add_gram_matrix(float* c, const float* rows, int64_t m, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += rows_at_once)
    multiply('T', 'N', std::min(rows_at_once, n - begin), n - begin, m, 1.0F, rows + begin, n, rows + begin, n, 1.0F,
             c + begin * n + begin, n);
}

void subtract_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                      int64_t n, int64_t k) {
  multiply('N', 'N', m, n, k, -1.0F, a, lda, b, ldb, 1.0F, c, ldc);
}

void divide_by_upper(float* b, const float* u, int64_t m, int64_t n) {
  follow_openmp();
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t width = std::min(block, n - begin);
    multiply('N', 'N', m, width, begin, -1.0F, b, n, u + begin, n, 1.0F, b + begin, n);
    cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, size(m), size(width), 1.0F,
                u + begin * n + begin, size(n), b + begin, size(n));
  }
}

bool invert_cholesky_factor(float* a, int64_t n) {
  follow_openmp();
  return cholesky(a, n) && invert_lower(a, n);
}

}  // namespace nibblenet::blas
