#include "engine/quant/blas.h"

#include <cblas.h>
#include <omp.h>

#include "engine/core/error.h"

// LAPACK's own names; OpenBLAS holds them, but Debian's package of it has no header for them. Matrices are
// column-major, the last arguments are the lengths of the character arguments.
extern "C" {
void spotrf_(const char* uplo, const blasint* n, float* a, const blasint* lda, blasint* info, size_t);
void strtri_(const char* uplo, const char* diag, const blasint* n, float* a, const blasint* lda, blasint* info, size_t,
             size_t);
}

namespace nibblenet::blas {
namespace {

/// The builds of OpenBLAS that have threads of their own follow OpenMP's number, too.
void follow_openmp() { openblas_set_num_threads(omp_get_max_threads()); }

blasint size(int64_t value) { return static_cast<blasint>(value); }

}  // namespace

void add_gram_matrix(float* c, const float* rows, int64_t m, int64_t n) {
  follow_openmp();
  cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, size(n), size(m), 1.0F, rows, size(n), 1.0F, c, size(n));
}

void subtract_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                      int64_t n, int64_t k) {
  follow_openmp();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size(m), size(n), size(k), -1.0F, a, size(lda), b, size(ldb),
              1.0F, c, size(ldc));
}

void divide_by_upper(float* b, const float* u, int64_t m, int64_t n) {
  follow_openmp();
  cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, size(m), size(n), 1.0F, u, size(n), b,
              size(n));
}

bool invert_cholesky_factor(float* a, int64_t n) {
  follow_openmp();
  const blasint order = size(n);
  blasint info = 0;
  // What is lower in rows is upper in columns: LAPACK finds v with a = v^T v, and v in columns is l in rows.
  spotrf_("U", &order, a, &order, &info, 1);
  if (info < 0) fail<Error>("spotrf refuses its argument {}", -info);
  if (info > 0) return false;
  strtri_("U", "N", &order, a, &order, &info, 1, 1);
  if (info < 0) fail<Error>("strtri refuses its argument {}", -info);
  return info == 0;
}

}  // namespace nibblenet::blas
