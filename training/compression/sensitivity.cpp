#include "training/compression/sensitivity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "engine/quant/entropy.h"
#include "layers/network/image_feed.h"
#include "layers/network/pass.h"

namespace nibblenet {
namespace {

/// Every image, prepared, [images, S, S, 3].
Tensor<float> prepare_all(Network& network, const Dataset& images, const Preprocess& preprocess, int64_t batch_size) {
  Backend& backend = network.backend();
  Tensor<float> all(backend, {images.size(), preprocess.crop, preprocess.crop, 3}, MemoryCategory::data);
  ImageFeed feed(backend, images, preprocess, {.batch_size = batch_size}, Precision::float32);
  int64_t first = 0;
  ConstActivations prepared;
  for (Batch batch; feed.next(batch, prepared); first += batch.size())
    backend.convert(all.view().slice(first, batch.size()), prepared);
  return all;
}

/// Calls use(output, first) with the output of layers [begin, end) for each batch of x[images, …].
template <class Use>
void run_batches(Network& network, size_t begin, size_t end, TensorView<const float> x, int64_t batch_size, Use use) {
  const int64_t batch = std::min(batch_size, x.size(0));
  Pass pass(network, begin, end, x.slice(0, batch).shape(), Pass::Mode::inference);
  for (int64_t first = 0; first < x.size(0); first += batch)
    use(pass.forward(x.slice(first, std::min(batch, x.size(0) - first))), first);
}

/// The output of layers [begin, end), at least one, for all images.
Tensor<float> advance(Network& network, size_t begin, size_t end, TensorView<const float> x, int64_t batch_size) {
  Backend& backend = network.backend();
  Shape shape = x.shape();
  for (size_t i = begin; i < end; ++i) shape = network.layers()[i].spec.output_shape(shape);
  Tensor<float> all(backend, shape, MemoryCategory::activations);
  run_batches(network, begin, end, x, batch_size, [&](TensorView<const float> output, int64_t first) {
    backend.convert(all.view().slice(first, output.size(0)), output);
  });
  return all;
}

/// Logits of all images from the inputs of layer `begin`, on the host.
Tensor<float> predict(Network& network, size_t begin, TensorView<const float> x, int64_t batch_size) {
  Tensor<float> logits(host_memory(), {x.size(0), network.classes()}, MemoryCategory::data);
  run_batches(network, begin, network.layers().size(), x, batch_size,
              [&](TensorView<const float> output, int64_t first) {
                network.backend().copy_to_host(logits.view().slice(first, output.size(0)).data(), output.data(),
                                               output.span().size_bytes());
              });
  return logits;
}

/// log of the sum of exp(row), in double and without overflow.
double log_sum_exp(std::span<const float> row) {
  const auto largest = static_cast<double>(*std::ranges::max_element(row));
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value) - largest);
  return largest + std::log(sum);
}

std::string key_of(const std::string& weight, const Candidate& candidate) {
  return weight + "=" + to_string(candidate);
}

}  // namespace

std::string to_string(const Candidate& candidate) {
  const std::string scheme = to_string(candidate.scheme);
  return candidate.step > 0 ? fmt::format("{}, step {}", scheme, candidate.step) : scheme;
}

ChoiceRecord::ChoiceRecord(const std::vector<Entry>& known, std::function<void(const Entry&)> on_added) {
  for (const Entry& entry : known) add(entry);
  on_added_ = std::move(on_added);
}

const MeasuredChoice* ChoiceRecord::find(const std::string& weight, const Candidate& candidate,
                                         MeasuredBytes bytes) const {
  const auto found = choices_.find(key_of(weight, candidate));
  if (found == choices_.end()) return nullptr;
  return bytes == MeasuredBytes::stored || found->second.compressed_bytes > 0 ? &found->second : nullptr;
}

void ChoiceRecord::add(const Entry& entry) {
  choices_[key_of(entry.first, entry.second.candidate)] = entry.second;
  if (on_added_) on_added_(entry);
}

QuantizeWeight remembered(QuantizeWeight quantize) {
  return [quantize = std::move(quantize), known = std::make_shared<std::map<std::string, PackedTensor>>()](
             const Parameter& weight, const Candidate& candidate) {
    const std::string key = key_of(weight.name, candidate);
    const auto found = known->find(key);
    return found != known->end() ? found->second : known->emplace(key, quantize(weight, candidate)).first->second;
  };
}

double mean_divergence(TensorView<const float> p_logits, TensorView<const float> q_logits) {
  expect_shape(q_logits.shape(), p_logits.shape(), "logits to compare");
  double sum = 0;
  for (int64_t n = 0; n < p_logits.size(0); ++n) {
    const auto p = p_logits.slice(n, 1).span(), q = q_logits.slice(n, 1).span();
    const double p_total = log_sum_exp(p), q_total = log_sum_exp(q);
    for (size_t k = 0; k < p.size(); ++k) {
      const double log_p = static_cast<double>(p[k]) - p_total, log_q = static_cast<double>(q[k]) - q_total;
      sum += std::exp(log_p) * (log_p - log_q);
    }
  }
  return p_logits.size(0) == 0 ? 0.0 : std::max(0.0, sum / static_cast<double>(p_logits.size(0)));
}

int64_t payload_bytes(const PackedTensor& packed) {
  const ResidentSize size = resident_size(packed);
  return size.total() - size.padding;
}

std::vector<WeightSensitivity> measure_sensitivity(Network& network, const StateDict& floats, const Dataset& images,
                                                   const Preprocess& preprocess, int64_t batch_size,
                                                   const Candidates& candidates, const QuantizeWeight& quantize,
                                                   MeasuredBytes bytes, const OnProgress& on_progress,
                                                   ChoiceRecord* record) {
  std::vector<size_t> places;  // of the layers with weights
  std::vector<std::vector<Candidate>> choices;
  int64_t total = 0, done = 0;
  for (size_t i = 0; i < network.layers().size(); ++i) {
    if (!network.layers()[i].spec.has_parameters()) continue;
    places.push_back(i);
    choices.push_back(candidates(floats.at(network.layers()[i].spec.name + ".weight")));
    total += static_cast<int64_t>(choices.back().size());
  }

  std::vector<WeightSensitivity> result;
  Tensor<float> inputs = prepare_all(network, images, preprocess, batch_size);
  size_t reached = 0;  // the layer whose inputs these are
  const Tensor<float> expected = predict(network, 0, std::as_const(inputs).view(), batch_size);
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] > reached) inputs = advance(network, reached, places[i], std::as_const(inputs).view(), batch_size);
    reached = places[i];
    Layer& layer = network.layers()[reached];
    const Parameter& weight = floats.at(layer.spec.name + ".weight");
    WeightSensitivity& sensitivity = result.emplace_back();
    sensitivity.name = weight.name;
    sensitivity.weights = weight.shape().elements();
    for (const Candidate& candidate : choices[i]) {
      report_progress(on_progress, done, total);
      ++done;
      if (const auto* known = record != nullptr ? record->find(weight.name, candidate, bytes) : nullptr) {
        sensitivity.choices.push_back(*known);
        continue;
      }
      const PackedTensor packed = quantize(weight, candidate);
      std::unique_ptr<Weight> original = network.backend().make_weight(packed, network.precision());
      std::swap(original, layer.weight);
      const Tensor<float> logits = predict(network, reached, std::as_const(inputs).view(), batch_size);
      std::swap(original, layer.weight);
      sensitivity.choices.push_back({candidate, payload_bytes(packed), resident_size(packed).total(),
                                     bytes == MeasuredBytes::stored ? 0 : compressed_bytes(packed),
                                     mean_divergence(expected.view(), logits.view())});
      if (record != nullptr) record->add({weight.name, sensitivity.choices.back()});
    }
  }
  if (on_progress) on_progress(done, total);
  return result;
}

}  // namespace nibblenet
