// Feeds arbitrary bytes to the reader of packed models, as a file, and multiplies with the weights
// that it lets through, in every precision of the CPU.

#include <cmath>
#include <vector>

#include "engine/io/state_dict.h"
#include "kernels/cpu/backend_cpu.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

using namespace nibblenet;

constexpr int64_t most_weights = 1 << 16;  ///< beyond which products take too long for a fuzzer

/// y = x w for x of ones, as a linear layer or a convolution of one pixel.
void multiply(CpuBackend& backend, Weight& w) {
  const Shape& shape = w.shape();
  const bool linear = shape.rank() == 2;
  if (!linear && shape[2] != shape[3]) return;
  const std::vector<float> x(static_cast<size_t>(shape.inner_elements()), 1.0F);
  const std::vector<float> bias(static_cast<size_t>(shape[0]), 0.0F);
  std::vector<float> y(static_cast<size_t>(shape[0]));
  const TensorView<const float> b(bias.data(), {shape[0]});
  if (linear) {
    const TensorView<const float> row(x.data(), {1, shape[1]});
    backend.linear_forward(TensorView<float>(y.data(), {1, shape[0]}), row, w, b, Epilogue::none);
  } else {
    const TensorView<const float> image(x.data(), {1, shape[2], shape[2], shape[1]});
    backend.conv2d_forward(TensorView<float>(y.data(), {1, 1, 1, shape[0]}), image, w, b, {.size = shape[2]},
                           Epilogue::none);
  }
}

void use(CpuBackend& backend, const Parameter& parameter) {
  const PackedTensor& packed = parameter.packed_values();
  const Tensor<float> values = parameter.dequantized();
  for (const float value : values.view()) fuzz::require(std::isfinite(value));
  if (values.shape().elements() > most_weights) return;
  for (const Precision precision : {Precision::float32, Precision::bfloat16, Precision::int8})
    multiply(backend, *backend.make_weight(packed, precision));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static CpuBackend backend(1);
  try {
    const StateDict dict = load_state_dict(fuzz::as_file({data, size}));
    for (const Parameter& parameter : dict.parameters)
      if (parameter.packed()) use(backend, parameter);
  } catch (const FormatError&) {
  } catch (const UsageError&) {  // a scheme that does not exist
  }
  return 0;
}
