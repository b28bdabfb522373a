#include "training/compression/weight_packer.h"

#include <cstring>
#include <string_view>
#include <type_traits>

#include "engine/quant/hadamard.h"

namespace nibblenet {
namespace {

static_assert(std::is_trivially_copyable_v<GptqReport>);

void append_bytes(std::string& bytes, const void* data, uint64_t size) {
  bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
  bytes.append(static_cast<const char*>(data), size);
}

/// The next bytes that append_bytes() wrote.
std::string_view take_bytes(std::string_view& rest) {
  uint64_t size = 0;
  if (rest.size() < sizeof(size)) throw Error("a rank sent too little of its weights");
  std::memcpy(&size, rest.data(), sizeof(size));
  rest.remove_prefix(sizeof(size));
  if (rest.size() < size) throw Error("a rank sent too little of its weights");
  const std::string_view bytes = rest.substr(0, size);
  rest.remove_prefix(size);
  return bytes;
}

template <class T>
void take_values(std::string_view& rest, std::vector<T>& values) {
  const std::string_view bytes = take_bytes(rest);
  values.resize(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
}

/// All but the scheme and the shape, which every rank knows.
void append_packed(std::string& bytes, const PackedTensor& packed, const LayerReport& report) {
  for (const std::vector<uint8_t>* part : {&packed.codes, &packed.scales, &packed.zero_points, &packed.block_ids})
    append_bytes(bytes, part->data(), part->size());
  append_bytes(bytes, packed.codebook.data(), packed.codebook.size() * sizeof(float));
  append_bytes(bytes, report.weight.data(), report.weight.size());
  append_bytes(bytes, &report.gptq, sizeof(report.gptq));
}

void take_packed(std::string_view& rest, PackedTensor& packed, LayerReport& report) {
  for (std::vector<uint8_t>* part : {&packed.codes, &packed.scales, &packed.zero_points, &packed.block_ids})
    take_values(rest, *part);
  take_values(rest, packed.codebook);
  report.weight = take_bytes(rest);
  std::vector<GptqReport> gptq;
  take_values(rest, gptq);
  report.gptq = gptq.at(0);
}

}  // namespace

PackedTensor WeightPacker::pack(const Parameter& parameter, const Candidate& candidate,
                                const std::function<void(int64_t)>& on_weights, LayerReport* report, bool with_passes) {
  const TensorView<const float> weights = parameter.values().view();
  QuantizeOptions options = options_of_(parameter.name, candidate.step);
  if (!with_passes) options.passes = 0;
  if (candidate.scheme.is_trellis()) options.rate_weight = 0;  // all its strings take the same bits
  if (calibration_ == nullptr && options.range == Range::max)
    return backend_.quantize(weights, candidate.scheme, parameter.name);
  std::vector<float> fisher;
  if (calibration_ != nullptr) {
    options.hessian = &calibration_->hessians.at(parameter.name);
    fisher = relative_fisher(fisher_of(*calibration_, parameter.name), weights.size(0));
    options.fisher = fisher;
  }
  if (options.rounding == Rounding::gptq) {
    options.factor = &factor_of(parameter, candidate.scheme, options.order);
    if (report != nullptr) {
      report->weight = parameter.name;
      options.report = &report->gptq;
    }
  }
  options.on_columns = [&](int64_t columns, int64_t of) { on_weights(weights.elements() / of * columns); };
  return quantize(weights, candidate.scheme, parameter.name, options);
}

const HessianFactor& WeightPacker::factor_of(const Parameter& weight, const Scheme& scheme, ColumnOrder order) {
  const std::pair<std::string, int64_t> wanted(weight.name, scheme.rotated);
  if (factored_ == wanted) return factor_;
  factor_ = {};  // before the next one is made: the largest takes 340 MB
  factored_ = {};
  const Hessian& hessian = calibration_->hessians.at(weight.name);
  const Rotation rotation = rotation_of_weights(scheme, weight.shape());
  factor_ = rotation ? factorize(rotated(hessian, rotation), order) : factorize(hessian, order);
  factored_ = wanted;
  return factor_;
}

std::vector<LayerReport> pack_weights(StateDict& dict, const std::function<Scheme(const Parameter&)>& scheme_of,
                                      WeightPacker& packer, const OnPacking& on_packing,
                                      const std::function<void(const std::string& weight)>& on_packed, Ranks* ranks,
                                      const WeightOwners& owners) {
  int64_t total = 0, done = 0;
  for (const Parameter& parameter : dict.parameters)
    if (parameter.is_weight() && !parameter.packed()) total += parameter.shape().elements();
  std::vector<LayerReport> reports;
  std::string mine;  // what this rank packed, for the others
  for (Parameter& parameter : dict.parameters) {
    if (!parameter.is_weight() || parameter.packed()) continue;
    const auto show = [&](int64_t weights) { on_packing(done + weights, total, parameter.name); };
    show(0);
    const int64_t count = parameter.shape().elements();
    const Scheme scheme = scheme_of(parameter);
    if (ranks == nullptr || owners.at(parameter.name) == ranks->rank()) {
      LayerReport report;
      PackedTensor packed = packer(parameter, {scheme}, show, &report);
      if (ranks != nullptr) {
        append_packed(mine, packed, report);
      } else {
        parameter.value = std::move(packed);
        if (!report.weight.empty()) reports.push_back(std::move(report));
      }
    }
    if (on_packed) on_packed(parameter.name);
    done += count;
    show(0);
  }
  if (ranks == nullptr) return reports;
  const std::vector<std::string> all = ranks->gather(mine);
  std::vector<std::string_view> rest(all.begin(), all.end());
  for (Parameter& parameter : dict.parameters) {
    if (!parameter.is_weight() || parameter.packed()) continue;
    PackedTensor packed{.scheme = scheme_of(parameter), .shape = parameter.shape()};
    LayerReport report;
    take_packed(rest[static_cast<size_t>(owners.at(parameter.name))], packed, report);
    validate(packed, parameter.name);
    parameter.value = std::move(packed);
    if (!report.weight.empty()) reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace nibblenet
