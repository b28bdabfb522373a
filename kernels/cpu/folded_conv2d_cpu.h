#pragma once

#include "kernels/image_preparation.h"

namespace nibblenet {

/// A folded convolution on the CPU. The sums of a few output pixels times 64 channels stay in
/// registers during the loop over their 48 source pixels. Each row of a window is contiguous in the
/// image, so there is no gather.
class FoldedConv2dCpu final : public FoldedConv2d {
 public:
  /// `threads`: the number of threads that will run it.
  FoldedConv2dCpu(MemoryResource& memory, const FoldedConvolution& folded, int threads);
  void run(Activations y, TensorView<const uint8_t> images, Epilogue epilogue) override;
  ResidentSize resident() const override;

 private:
  /// Computes output row p of an image. `rows` is scratch for its source pixels, as floats.
  void run_row(float* y, const uint8_t* image, int64_t p, float* rows, Epilogue epilogue) const;

  FoldedConvolution geometry_;                 ///< without filters and biases
  std::vector<std::vector<int32_t>> columns_;  ///< by pattern: the output columns that take it
  Buffer<float> filters_;
  Buffer<float> biases_;
  MemoryResource& memory_;
  int threads_;
  Buffer<float> rows_;  ///< [threads, vertical taps, width, 3]; made by the first run
};

}  // namespace nibblenet
