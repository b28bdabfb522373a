#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// Functions of BLAS and LAPACK on row-major matrices, with OpenMP's number of threads. For a given
/// number of threads, the bits are the same on every run.
namespace nibblenet::blas {

/// Upper triangle of c[n, n] += rows[m, n]^T rows. The lower triangle may change.
void add_gram_matrix(float* c, const float* rows, int64_t m, int64_t n);

/// c[m, n] += a[m, k] b[k, n]; lda, ldb, ldc: elements from one row to the next.
void add_product(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t n,
                 int64_t k);

/// c[m, n] = a[m, k] b[n, k]^T; lda, ldb, ldc as above.
void multiply_by_transposed(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                            int64_t n, int64_t k);

/// c[m, n] = a[m, n] u for an upper triangular u[n, n], with its zeros.
void multiply_by_upper(float* c, const float* a, const float* u, int64_t m, int64_t n);

/// Cholesky factor in place: the symmetric a[n, n], read in its lower triangle, becomes the lower
/// triangular l with a = l l^T, zeros included. Returns false if a is not positive definite; then a
/// is undefined.
bool cholesky_factor(float* a, int64_t n);

/// The whole of (r r^T)^-1 [n, n], for an upper triangular r[n, n] with its zeros. Requires: no
/// zero on r's diagonal.
std::vector<float> inverse_of_product(std::span<const float> r, int64_t n);

/// Replaces the symmetric a[n, n], read in its upper triangle, by its eigenvectors, one a row, and
/// returns the eigenvalues, ascending. The element of largest size in each vector is positive.
/// Throws Error when the iteration does not converge.
std::vector<float> symmetric_eigenvectors(float* a, int64_t n);

/// Replaces each row of b[m, n] by a^-1 times itself, for a symmetric a[n, n], which is destroyed.
/// Returns false if a is not positive definite; then b is unchanged.
bool solve_positive_definite(float* a, float* b, int64_t n, int64_t m);

}  // namespace nibblenet::blas
