#include <omp.h>

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/decode_cpu.h"
#include "kernels/cpu/narrow_weight.h"
#include "kernels/cpu/trellis_cpu.h"
#include "kernels/cpu/weight_cpu.h"

namespace nibblenet {
namespace {

/// A row-major operand of gemm().
struct Matrix {
  const float* data;
  int64_t leading;  ///< elements from one row to the next
  bool transposed;
};

void check(dnnl::status status) {
  if (status != dnnl::status::success) throw Error("oneDNN refused a matrix product");
}

/// c[m, n] = op(a) op(b) + beta c, row-major, on the calling thread.
void gemm(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float beta, float* c, int64_t ldc) {
  check(dnnl::sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', m, n, k, 1.0F, a.data, a.leading, b.data,
                    b.leading, beta, c, ldc));
}

/// Calls work(i) for 0 <= i < count on OpenMP's threads. Rethrows what one of them threw.
template <class Work>
void for_all(int64_t count, int threads, Work work) {
  std::exception_ptr error;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    try {
      work(i);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

constexpr int64_t slab = 128;  // columns of c one thread computes at a time

/// c[m, n] = op(a) op(b), row-major. Each thread computes slabs of c's columns with oneDNN's
/// single-threaded product, which is faster for our shapes than oneDNN's own threading. The bits
/// depend on the slabs alone, not on the number of threads.
void gemm_in_slabs(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  for_all((n + slab - 1) / slab, omp_get_max_threads(), [&](int64_t s) {
    const int64_t column = s * slab;
    const Matrix part{b.data + (b.transposed ? column * b.leading : column), b.leading, b.transposed};
    gemm(m, std::min(slab, n - column), k, a, part, 0.0F, c + column, ldc);
  });
}

/// y = epilogue(y + bias), row by row.
void finish(TensorView<float> y, TensorView<const float> bias, Epilogue epilogue) {
  const int64_t columns = y.size(1);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < y.size(0); ++n) {
    float* row = y.data() + n * columns;
    if (epilogue == Epilogue::relu) {
      for (int64_t k = 0; k < columns; ++k) row[k] = std::max(row[k] + bias[k], 0.0F);
    } else {
      for (int64_t k = 0; k < columns; ++k) row[k] += bias[k];
    }
  }
}

/// Up to this batch, a decoded row is used at once, from the first-level cache. Above it, whole
/// panels are decoded for the blocked product, which reuses them from registers.
constexpr int64_t largest_dot_batch = 8;

void packed_dots(TensorView<float> y, TensorView<const float> x, const PackedView& packed) {
  constexpr int64_t rows = 4;
  const int64_t batch = x.size(0);
  if (packed.trellis_quarters > 0) {
    static_assert(largest_dot_batch <= trellis_dots_batch);
    // Whole sequences read each string at once; parts of them keep more threads busy.
    const bool many = packed.trellis().sequences() >= 2 * omp_get_max_threads();
    const int64_t part = many ? trellis_sequence : trellis_granule;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < packed.channels; first += part)
      trellis_dots(best_decode_path(), packed, first, std::min(part, packed.channels - first), x.data(), batch,
                   y.data());
    return;
  }
  const int64_t quads = (packed.channels + rows - 1) / rows;
#pragma omp parallel for schedule(static)
  for (int64_t q = 0; q < quads; ++q) {
    float dots[rows * largest_dot_batch];
    const int64_t count = std::min(rows, packed.channels - q * rows);
    decode_dot(packed, q * rows, count, x.data(), batch, dots);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t n = 0; n < batch; ++n) y[n * packed.channels + q * rows + r] = dots[r * batch + n];
  }
}

constexpr int64_t panel_rows = 128;
constexpr int64_t panel_columns = 2048;  // 1 MiB a thread: within a second-level cache or close to it

/// `scratch` holds a panel for each of `threads`. The number is explicit because another backend
/// may have changed OpenMP's own.
void packed_product(TensorView<float> y, TensorView<const float> x, const PackedView& packed, float* scratch,
                    int threads) {
  for_all((packed.channels + panel_rows - 1) / panel_rows, threads, [&](int64_t p) {
    float* panel = scratch + omp_get_thread_num() * panel_rows * panel_columns;
    const int64_t first = p * panel_rows;
    const int64_t rows = std::min(panel_rows, packed.channels - first);
    for (int64_t c = 0; c < packed.channel_elements; c += panel_columns) {
      const int64_t columns = std::min(panel_columns, packed.channel_elements - c);
      decode_rows(packed, first, rows, c, columns, panel);
      gemm(x.size(0), rows, columns, {x.data() + c, packed.channel_elements, false}, {panel, columns, true},
           c == 0 ? 0.0F : 1.0F, y.data() + first, packed.channels);
    }
  });
}

void column_sums(TensorView<float> sums, TensorView<const float> rows) {
  std::fill(sums.begin(), sums.end(), 0.0F);
  const int64_t columns = sums.elements();
  for (int64_t n = 0; n < rows.size(0); ++n)
    for (int64_t k = 0; k < columns; ++k) sums[k] += rows[n * columns + k];
}

}  // namespace

void CpuBackend::linear_forward(Activations out, ConstActivations in, Weight& w, TensorView<const float> bias,
                                Epilogue epilogue) {
  if (out.elements() == 0) return;
  if (const auto* narrow = dynamic_cast<NarrowWeightCpu*>(&w))
    return narrow_linear_forward(out, in, *narrow, bias, epilogue);
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  const int64_t columns = x.size(1);
  if (w.packed()) {
    const PackedView& packed = static_cast<PackedWeightCpu&>(w).view();
    if (x.size(0) <= largest_dot_batch) {
      packed_dots(y, x, packed);
    } else {
      packed_product(y, x, packed, workspace(static_cast<size_t>(threads_ * panel_rows * panel_columns)), threads_);
    }
  } else {
    gemm_in_slabs(x.size(0), y.size(1), columns, {x.data(), columns, false}, {w.values().data(), columns, true},
                  y.data(), y.size(1));
  }
  finish(y, bias, epilogue);
}

void CpuBackend::linear_backward_data(Activations dx, ConstActivations dy, Weight& w, const GradientStore& store) {
  gemm_in_slabs(dx.size(0), dx.size(1), dy.size(1), {dy.floats().data(), dy.size(1), false},
                {w.values().data(), dx.size(1), false}, dx.floats().data(), dx.size(1));
  finish_gradient(dx, store);
}

void CpuBackend::linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                        ConstActivations x) {
  column_sums(dbias, dy.floats());
  if (x.size(0) == 0) {
    std::fill(dw.begin(), dw.end(), 0.0F);
    return;
  }
  gemm_in_slabs(dw.size(0), dw.size(1), x.size(0), {dy.floats().data(), dy.size(1), true},
                {x.floats().data(), x.size(1), false}, dw.data(), dw.size(1));
}

}  // namespace nibblenet
