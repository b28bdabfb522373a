#include "kernels/cpu/backend_cpu.h"

#include <omp.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "engine/core/threads.h"
#include "engine/quant/byte_values.h"
#include "engine/quant/hadamard.h"
#include "kernels/cpu/convolutions_cpu.h"
#include "kernels/cpu/decode_cpu.h"
#include "kernels/cpu/narrow_weight.h"
#include "kernels/cpu/weight_cpu.h"

namespace nibblenet {

namespace {

/// Limits oneDNN to the instructions that NIBBLENET_MAX_ISA allows, before it compiles a first
/// kernel. Later calls change nothing.
void limit_onednn(InstructionSet set) {
#if defined(__x86_64__)
  constexpr std::array limits = {dnnl::cpu_isa::sse41, dnnl::cpu_isa::avx2, dnnl::cpu_isa::avx512_core,
                                 dnnl::cpu_isa::avx512_core_vnni};
  if (static_cast<size_t>(set) < limits.size()) dnnl::set_max_cpu_isa(limits.at(static_cast<size_t>(set)));
#else
  (void)set;
#endif
}

}  // namespace

CpuBackend::CpuBackend(int threads) : threads_(threads) {
  limit_onednn(instruction_set_);
  if (threads < 0) fail<UsageError>("--threads {}: must be 0 (all cores) or more", threads);
  if (threads_ == 0) threads_ = static_cast<int>(default_threads());
  omp_set_dynamic(0);
  omp_set_num_threads(threads_);
  // OMP_THREAD_LIMIT may give fewer, and oneDNN would wait for the missing ones for ever.
#pragma omp parallel
#pragma omp single
  threads_ = omp_get_num_threads();
  omp_set_num_threads(threads_);
  convolutions_ = std::make_unique<Convolutions>();
}

CpuBackend::~CpuBackend() = default;

void CpuBackend::take_turn() { omp_set_num_threads(threads_); }

std::string CpuBackend::description() const {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("CPU, {} threads, oneDNN {}.{}.{}, {}{}", threads_, version->major, version->minor, version->patch,
                     title_of(instruction_set_), remark_);
}

size_t CpuBackend::bytes_that_empty_caches() const {
  // The C library answers 0 or -1 where it does not know. Then take sizes that few processors
  // exceed.
  const auto size = [](int name, long otherwise) {
    const long bytes = sysconf(name);
    return static_cast<size_t>(bytes > 0 ? bytes : otherwise);
  };
  // Every thread writes its own share, which has to exceed its core's cache.
  return 2 * size(_SC_LEVEL3_CACHE_SIZE, 64L << 20) +
         4 * size(_SC_LEVEL2_CACHE_SIZE, 1L << 20) * static_cast<size_t>(threads_);
}

void CpuBackend::expect_support(Precision precision) const {
  if (precision == Precision::float16)
    fail<UsageError>("--precision float16: the CPU computes in float32, and infers in bfloat16 and int8, too");
}

std::unique_ptr<Weight> CpuBackend::make_weight(TensorView<const float> host_values, Precision precision) {
  expect_support(precision);
  const bool rounds = precision == Precision::bfloat16 ||
                      (precision == Precision::int8 && has_fast_products(Precision::bfloat16, instruction_set_));
  if (rounds) return std::make_unique<NarrowWeightCpu>(*this, host_values, instruction_set_);
  return std::make_unique<FloatWeightCpu>(*this, host_values);
}

std::unique_ptr<Weight> CpuBackend::make_weight(const PackedTensor& packed, Precision precision,
                                                const InputRange& input) {
  expect_support(precision);
  const Codebook codebook = codebook_of(packed);
  const PackedView view = view_of(packed, codebook);
  if (precision == Precision::int8 && !why_not_bytes(view).empty())
    precision = has_fast_products(Precision::bfloat16, instruction_set_) ? Precision::bfloat16 : Precision::float32;
  if (precision != Precision::float32 && has_one_step_a_channel(view))
    return std::make_unique<NarrowWeightCpu>(*this, packed, precision, input, instruction_set_);
  return std::make_unique<PackedWeightCpu>(*this, packed);
}

int64_t CpuBackend::images_at_once(Precision precision) const {
  // Convolutions in float32 are oneDNN's, whose sums may depend on the batch.
  const bool narrow = precision == Precision::bfloat16 || precision == Precision::int8;
  constexpr int64_t images_of_a_thread = 2;  // 0.8 MB each behind AlexNet's first convolution
  return narrow ? std::max<int64_t>(8, images_of_a_thread * threads_) : Inference::images_at_once(precision);
}

std::optional<ForwardRoute> CpuBackend::route(const Weight& w, const ForwardQuestion& question) const {
  if (question.pool.size > 0) return std::nullopt;
  if (const auto* narrow = dynamic_cast<const NarrowWeightCpu*>(&w))
    return ForwardRoute{fmt::format("{}, {}{}", to_string(*narrow->product_precision()), narrow->kernels().name,
                                    narrow->filter(question.window.stride) != nullptr ? ", filtered" : "")};
  return ForwardRoute{"float32"};
}

void CpuBackend::gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) {
  const int64_t columns = x.shape().inner_elements();
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < rows.size(); ++i)
    std::memcpy(y.data() + static_cast<int64_t>(i) * columns, x.data() + rows[i] * columns,
                sizeof(float) * static_cast<size_t>(columns));
}

void CpuBackend::convert(Activations out, ConstActivations in, float factor) {
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.elements(); ++i) y[i] = factor * x[i];
}

void CpuBackend::hadamard(Activations out, ConstActivations in, Rotation rotation) {
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  if (y.data() != x.data()) convert(y, x);
  hadamard_transform(y.span(), rotation);
}

float* CpuBackend::workspace(size_t size) {
  grow(workspace_, size);
  return workspace_.data();
}

}  // namespace nibblenet
