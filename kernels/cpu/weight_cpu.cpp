#include "kernels/cpu/weight_cpu.h"

#include <algorithm>

namespace nibblenet {

dnnl::memory::desc plain_filter_desc(const Shape& shape) {
  return {{shape[0], shape[1], shape[2], shape[3]}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::oihw};
}

FloatWeightCpu::FloatWeightCpu(MemoryResource& memory, TensorView<const float> values)
    : memory_(memory), values_(memory, values.shape(), MemoryCategory::weights), view_(values_.view()) {
  std::copy(values.begin(), values.end(), values_.data());
}

ResidentSize FloatWeightCpu::resident() const {
  ResidentSize size;
  size.weights = static_cast<int64_t>(sizeof(float)) * values_.elements();
  return size;
}

dnnl::memory FloatWeightCpu::in_layout(const dnnl::memory::desc& wanted, const dnnl::engine& engine,
                                       dnnl::stream& stream) {
  const dnnl::memory::desc plain_desc = plain_filter_desc(shape());
  if (wanted == plain_desc) return {wanted, engine, view_.data()};
  if (!reordered_valid_ || layout_ != wanted) {
    const size_t floats = wanted.get_size() / sizeof(float);
    if (reordered_.size() != floats) reordered_ = Buffer<float>(memory_, floats, MemoryCategory::workspace);
    dnnl::memory plain(plain_desc, engine, view_.data());
    dnnl::memory target(wanted, engine, reordered_.data());
    dnnl::reorder(plain, target).execute(stream, plain, target);
    stream.wait();
    layout_ = wanted;
    reordered_valid_ = true;
  }
  return {wanted, engine, reordered_.data()};
}

PackedWeightCpu::PackedWeightCpu(MemoryResource& memory, const PackedTensor& packed)
    : shape_(packed.shape),
      codes_(copy_of(memory, packed.codes, MemoryCategory::codes)),
      scales_(copy_of(memory, packed.scales, MemoryCategory::scales)),
      zero_points_(copy_of(memory, packed.zero_points, MemoryCategory::zero_points)),
      block_ids_(copy_of(memory, packed.block_ids, MemoryCategory::block_ids)),
      stored_codebook_(copy_of(memory, packed.codebook, MemoryCategory::codebooks)),
      codebook_(codebook_of(packed)),
      view_(view_of(packed, codebook_)),
      resident_(resident_size(packed)) {
  view_.codes = codes_.data();
  view_.scales = scales_.data();
  view_.zero_points = zero_points_.size() == 0 ? nullptr : zero_points_.data();
  view_.block_ids = block_ids_.size() == 0 ? nullptr : block_ids_.data();
}

TensorView<float> PackedWeightCpu::values() {
  throw Error("a packed weight has no float values: export it, or train the float model it came from");
}

}  // namespace nibblenet
