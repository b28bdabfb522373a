#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// What this project takes from BLAS and LAPACK, on row-major matrices, by as many threads as OpenMP has. Results are
/// the same bits on every run with as many threads.
namespace nibblenet::blas {

/// Upper triangle of c[n, n] += rows[m, n]^T rows; what lies below it may change.
void add_gram_matrix(float* c, const float* rows, int64_t m, int64_t n);

/// c[m, n] += a[m, k] b[k, n]; lda, ldb, ldc: elements from one row to the next.
void add_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t n,
                 int64_t k);

/// c[m, n] = a[m, k] b[n, k]^T; lda, ldb, ldc as above.
void multiply_by_transposed(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                            int64_t n, int64_t k);

/// c[m, n] = a[m, n] u for an upper triangular u[n, n], with its zeros.
void multiply_by_upper(float* c, const float* a, const float* u, int64_t m, int64_t n);

/// a[n, n], symmetric, of which the lower triangle counts, becomes the lower triangular l with a = l l^T, zeros and
/// all. False when a is not positive definite; a is then spoilt.
bool cholesky_factor(float* a, int64_t n);

/// (r r^T)^-1 of an upper triangular r[n, n], with its zeros, none of them on the diagonal; [n, n], all of it.
std::vector<float> inverse_of_product(std::span<const float> r, int64_t n);

/// Each of the rows b[m, n] becomes a^-1 times itself, a[n, n] being symmetric; a is spoilt. False when a is not
/// positive definite; b is then as it was.
bool solve_positive_definite(float* a, float* b, int64_t n, int64_t m);

}  // namespace nibblenet::blas
