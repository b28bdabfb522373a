#include "engine/quant/blas.h"

#include <cblas.h>
#include <dnnl.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/core/error.h"
#include "engine/core/shared_library.h"

// OpenBLAS chooses kernels by the processor's model; for a model newer than itself it takes kernels
// of 2004. oneDNN chooses by instruction set. So oneDNN computes the long products, and OpenBLAS
// only triangles of one block.

namespace nibblenet::blas {
namespace {

constexpr int64_t block = 128;
constexpr int64_t triangle_rows = 1024, triangle_columns = 512;  // of a triangle; half of each square is wasted

/// Address space for OpenBLAS itself, and for the buffers of each of its threads.
constexpr size_t library_bytes = size_t{128} << 20, thread_bytes = size_t{64} << 20;

/// OpenBLAS, loaded when it is first needed: its start takes memory, and waits for ever where there
/// is too little. LAPACK's functions have no header in Debian's package. Their matrices are
/// column-major; the last arguments are the lengths of the character arguments.
struct OpenBlas {
  void (*set_num_threads)(int threads);
  void (*strsm)(CBLAS_ORDER, CBLAS_SIDE, CBLAS_UPLO, CBLAS_TRANSPOSE, CBLAS_DIAG, blasint m, blasint n, float alpha,
                const float* a, blasint lda, float* b, blasint ldb);
  void (*spotrf)(const char* uplo, const blasint* n, float* a, const blasint* lda, blasint* info, size_t);
  void (*strtri)(const char* uplo, const char* diagonal, const blasint* n, float* a, const blasint* lda, blasint* info,
                 size_t, size_t);
  void (*sposv)(const char* uplo, const blasint* n, const blasint* columns, float* a, const blasint* lda, float* b,
                const blasint* ldb, blasint* info, size_t);

  void (*ssyev)(const char* vectors, const char* uplo, const blasint* n, float* a, const blasint* lda, float* values,
                float* work, const blasint* length, blasint* info, size_t, size_t);

  OpenBlas() {
    const size_t needed = library_bytes + thread_bytes * static_cast<size_t>(omp_get_max_threads());
    void* space = mmap(nullptr, needed, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED)
      fail<Error>("OpenBLAS needs {} MiB of address space: raise the limit (ulimit -v) or take fewer --threads",
                  needed >> 20);
    munmap(space, needed);
    const SharedLibrary library("libopenblas.so.0", "NIBBLENET_OPENBLAS");
    set_num_threads = library.find<decltype(set_num_threads)>("openblas_set_num_threads");
    strsm = library.find<decltype(strsm)>("cblas_strsm");
    spotrf = library.find<decltype(spotrf)>("spotrf_");
    strtri = library.find<decltype(strtri)>("strtri_");
    ssyev = library.find<decltype(ssyev)>("ssyev_");
    sposv = library.find<decltype(sposv)>("sposv_");
  }
};

/// With as many threads as OpenMP: builds of OpenBLAS with threads of their own follow it, too.
const OpenBlas& openblas() {
  static const OpenBlas library;
  library.set_num_threads(omp_get_max_threads());
  return library;
}

/// c := alpha op(a) op(b) + beta c, op(a)[m, k], op(b)[k, n].
void multiply(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
              int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0 || k == 0) return;
  const dnnl_status_t status = dnnl_sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success)
    fail<Error>("oneDNN refuses a product of {} x {} x {}: status {}", m, k, n, static_cast<int>(status));
}

}  // namespace

void add_gram_matrix(float* c, const float* rows, int64_t m, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += triangle_rows)
    multiply('T', 'N', std::min(triangle_rows, n - begin), n - begin, m, 1.0F, rows + begin, n, rows + begin, n, 1.0F,
             c + begin * n + begin, n);
}

void add_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t n,
                 int64_t k) {
  multiply('N', 'N', m, n, k, 1.0F, a, lda, b, ldb, 1.0F, c, ldc);
}

void multiply_by_transposed(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                            int64_t n, int64_t k) {
  multiply('N', 'T', m, n, k, 1.0F, a, lda, b, ldb, 0.0F, c, ldc);
}

void multiply_by_upper(float* c, const float* a, const float* u, int64_t m, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += triangle_columns) {
    const int64_t end = std::min(begin + triangle_columns, n);
    multiply('N', 'N', m, end - begin, end, 1.0F, a, n, u + begin, n, 0.0F, c + begin, n);
  }
}

bool cholesky_factor(float* a, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    float* diagonal = a + begin * n + begin;
    multiply('N', 'T', n - begin, end - begin, begin, -1.0F, a + begin * n, n, a + begin * n, n, 1.0F, diagonal, n);
    const auto columns = static_cast<blasint>(end - begin), stride = static_cast<blasint>(n);
    blasint info = 0;
    // Lower in row-major order is upper in column-major order: LAPACK finds v with a = v^T v, and
    // column-major v is row-major l.
    openblas().spotrf("U", &columns, diagonal, &stride, &info, 1);
    if (info < 0) fail<Error>("spotrf refuses its argument {}", -info);
    if (info > 0) return false;
    if (end < n)
      openblas().strsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, static_cast<blasint>(n - end),
                       columns, 1.0F, diagonal, stride, a + end * n + begin, stride);
  }
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i) std::fill(a + i * n + i + 1, a + (i + 1) * n, 0.0F);
  return true;
}

std::vector<float> inverse_of_product(std::span<const float> r, int64_t n) {
  if (n == 0) return {};
  std::vector<float> inverse(r.begin(), r.end()), result(r.size());
  const auto size = static_cast<blasint>(n);
  blasint info = 0;
  openblas().strtri("L", "N", &size, inverse.data(), &size, &info, 1, 1);  // upper in rows is lower in columns
  if (info != 0) fail<Error>("strtri refuses a triangle of {}: {}", n, info);
  add_gram_matrix(result.data(), inverse.data(), n, n);
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 1; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) result[static_cast<size_t>(i * n + j)] = result[static_cast<size_t>(j * n + i)];
  return result;
}

std::vector<float> symmetric_eigenvectors(float* a, int64_t n) {
  if (n == 0) return {};
  const auto size = static_cast<blasint>(n), length = static_cast<blasint>(66 * n);  // blocks of 64 columns
  std::vector<float> values(static_cast<size_t>(n)), work(static_cast<size_t>(length));
  blasint info = 0;
  // Upper in rows is lower in columns; vectors are columns of the column-major result.
  openblas().ssyev("V", "L", &size, a, &size, values.data(), work.data(), &length, &info, 1, 1);
  if (info != 0) fail<Error>("ssyev finds no eigenvectors of a matrix of {}: {}; are there NaNs?", n, info);
  for (int64_t i = 0; i < n; ++i) {
    float* vector = a + i * n;
    const float largest =
        *std::max_element(vector, vector + n, [](float x, float y) { return std::fabs(x) < std::fabs(y); });
    if (largest < 0) std::transform(vector, vector + n, vector, std::negate());
  }
  return values;
}

bool solve_positive_definite(float* a, float* b, int64_t n, int64_t m) {
  const auto size = static_cast<blasint>(n), rows = static_cast<blasint>(m);
  blasint info = 0;
  openblas().sposv("U", &size, &rows, a, &size, b, &size, &info, 1);
  if (info < 0) fail<Error>("sposv refuses its argument {}", -info);
  return info == 0;
}

}  // namespace nibblenet::blas
