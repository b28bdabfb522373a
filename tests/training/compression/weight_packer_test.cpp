#include "training/compression/weight_packer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;
using testing::make_test_backend;
using testing::small_alexnet;

QuantizeOptions plain(const std::string&, float) { return {}; }

std::pair<std::vector<uint8_t>, std::vector<uint8_t>> stored(const PackedTensor& packed) {
  return {packed.codes, packed.scales};
}

/// Hessians and Fisher diagonals of the model's layers, one different from the other.
Calibration calibration_of(const StateDict& model) {
  Calibration calibration;
  for (const Parameter& weight : model.parameters) {
    if (!weight.is_weight()) continue;
    const int64_t inputs = weight.shape().inner_elements();
    Tensor<float> rows(host_memory(), {inputs + 3, inputs}, MemoryCategory::data);
    Random random(5, static_cast<uint64_t>(inputs));
    for (float& value : rows.view()) value = random.uniform();
    HessianAccumulator sums(inputs);
    sums.add(rows.view());
    calibration.hessians.emplace(weight.name, std::move(sums).finish());
  }
  calibration.fisher["classifier.6.weight"].assign(10, 1.0F);
  return calibration;
}

TEST(WeightPacker, WithoutACalibrationGivesTheBackendsCodes) {
  const auto backend = make_test_backend();
  const StateDict model = small_alexnet(1);
  const Parameter& weight = model.at("features.3.weight");
  const Scheme scheme = parse_scheme("linear:3:channel");
  WeightPacker packer(plain, nullptr, *backend);
  LayerReport report;
  EXPECT_EQ(stored(packer(weight, {scheme}, {}, &report)),
            stored(backend->quantize(weight.values().view(), scheme, weight.name)));
  EXPECT_EQ(report.weight, "") << "GPTQ had no say";
}

TEST(WeightPacker, AsksForOptionsByWeightAndStep) {
  const auto backend = make_test_backend();
  const StateDict model = small_alexnet(1);
  std::vector<std::pair<std::string, float>> asked;
  WeightPacker packer(
      [&](const std::string& weight, float step) {
        asked.emplace_back(weight, step);
        return QuantizeOptions{.range = Range::step, .deviations = step};
      },
      nullptr, *backend);
  const Parameter& weight = model.at("classifier.1.weight");
  const Candidate candidate{parse_scheme("linear:4:channel"), 1.5F};
  EXPECT_EQ(stored(packer(weight, candidate, {})),
            stored(quantize(weight.values().view(), candidate.scheme, weight.name,
                            {.range = Range::step, .deviations = 1.5F})));
  EXPECT_THAT(asked, ElementsAre(std::pair("classifier.1.weight", 1.5F)));
}

TEST(WeightPacker, WithGptqGivesItsCodesAndReport) {
  const auto backend = make_test_backend();
  const StateDict model = small_alexnet(1);
  const Calibration calibration = calibration_of(model);
  WeightPacker packer([](const std::string&, float) { return QuantizeOptions{.rounding = Rounding::gptq}; },
                      &calibration, *backend);
  for (const char* name : {"classifier.4.weight", "classifier.6.weight", "classifier.4.weight"}) {
    const Parameter& weight = model.at(name);
    const Scheme scheme = parse_scheme("linear:2:channel");
    const std::vector<float> fisher = relative_fisher(fisher_of(calibration, name), weight.shape()[0]);
    GptqReport expected;
    const PackedTensor packed = quantize(
        weight.values().view(), scheme, name,
        {.rounding = Rounding::gptq, .hessian = &calibration.hessians.at(name), .fisher = fisher, .report = &expected});
    LayerReport report;
    int64_t last = 0;
    EXPECT_EQ(stored(packer(
                  weight, {scheme}, [&](int64_t done) { last = done; }, &report)),
              stored(packed))
        << name;
    EXPECT_EQ(report.weight, name);
    EXPECT_EQ(report.gptq.error, expected.error);
    EXPECT_EQ(last, weight.shape().elements());
  }
}

TEST(PackWeights, PacksWeightsAloneAndTellsHowFarItIs) {
  const auto backend = make_test_backend();
  StateDict model = small_alexnet(1);
  WeightPacker packer(plain, nullptr, *backend);
  std::vector<std::string> packed;
  int64_t last = 0;
  const std::vector<LayerReport> reports = pack_weights(
      model,
      [](const Parameter& weight) {
        return parse_scheme(weight.shape().rank() == 4 ? "linear:4:channel" : "nf4:4:block:64");
      },
      packer,
      [&](int64_t done, int64_t total, const std::string&) {
        EXPECT_EQ(total, model.weight_count());
        EXPECT_GE(done, last);
        last = done;
      },
      [&](const std::string& weight) { packed.push_back(weight); });
  EXPECT_TRUE(reports.empty());
  EXPECT_EQ(packed.size(), 8U);
  EXPECT_EQ(last, model.weight_count());
  for (const Parameter& parameter : model.parameters) EXPECT_EQ(parameter.packed(), parameter.is_weight());
  EXPECT_EQ(to_string(model.at("features.0.weight").packed_values().scheme), "linear:4:channel");
  EXPECT_EQ(to_string(model.at("classifier.6.weight").packed_values().scheme), "nf4:4:block:64");
}

}  // namespace
}  // namespace nibblenet
