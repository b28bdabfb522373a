#include "training/compression/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>

#include "engine/quant/quantizer.h"
#include "layers/network/pass.h"
#include "tests/engine/quant/hessians.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::relative_error;
using testing::small_alexnet;
using testing::TemporaryFolder;

class CalibrationTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    write_standin(folder_->path(), 60, 10, 1);
    images_ = load_dataset(folder_->path(), Split::train);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static Calibration measure(const CalibrationOptions& options) {
    const auto backend = make_test_backend();
    Network network(*backend, small_alexnet(1));
    Calibration calibration = calibrate(network, images_, Preprocess::for_image_size(64), options);
    calibration.data = "stand-in, train";
    calibration.data_fingerprint = fingerprint_of(images_);
    calibration.model_fingerprint = fingerprint_of(small_alexnet(1));
    return calibration;
  }

  static TensorView<const float> view(const Hessian& hessian) {
    return {hessian.values.data(), {hessian.inputs, hessian.inputs}};
  }

  static inline std::unique_ptr<TemporaryFolder> folder_;
  static inline Dataset images_;
};

/// The Hessian by definition: every window of every image, in float64.
Hessian moments_by_definition(TensorView<const float> x, const LayerSpec& spec) {
  const int64_t inputs = spec.weight.inner_elements();
  std::vector<double> sums(static_cast<size_t>(inputs * inputs));
  int64_t rows = 0;
  std::vector<double> row(static_cast<size_t>(inputs));
  const auto add_row = [&] {
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t j = 0; j < inputs; ++j)
        sums[static_cast<size_t>(i * inputs + j)] += row[static_cast<size_t>(i)] * row[static_cast<size_t>(j)];
    ++rows;
  };
  for (int64_t n = 0; n < x.size(0); ++n) {
    if (spec.kind == LayerKind::linear) {
      for (int64_t i = 0; i < inputs; ++i) row[static_cast<size_t>(i)] = static_cast<double>(x[n * inputs + i]);
      add_row();
      continue;
    }
    const Window window = spec.window;
    for (int64_t p = 0; p < window.output(x.size(1)); ++p)
      for (int64_t q = 0; q < window.output(x.size(2)); ++q) {
        size_t i = 0;
        for (int64_t c = 0; c < spec.weight[1]; ++c)
          for (int64_t r = 0; r < window.size; ++r)
            for (int64_t s = 0; s < window.size; ++s) {
              const int64_t h = p * window.stride - window.padding + r, w = q * window.stride - window.padding + s;
              const bool inside = h >= 0 && h < x.size(1) && w >= 0 && w < x.size(2);
              row[i++] = inside ? static_cast<double>(x[((n * x.size(1) + h) * x.size(2) + w) * x.size(3) + c]) : 0.0;
            }
        add_row();
      }
  }
  Hessian hessian{.inputs = inputs};
  for (const double sum : sums) hessian.values.push_back(static_cast<float>(sum / static_cast<double>(rows)));
  return hessian;
}

TEST_F(CalibrationTest, MomentsOfEveryLayerAreThoseOfTheDefinition) {
  const auto backend = make_test_backend();
  Network network(*backend, small_alexnet(1));
  const Preprocess preprocess = Preprocess::for_image_size(64);
  Dataset few = images_;
  few.images.resize(3);
  few.labels.resize(3);
  const Calibration calibration = calibrate(network, few, preprocess, {.batch_size = 2, .positions = 1'000'000});
  ASSERT_EQ(calibration.hessians.size(), 8U);

  Tensor<float> images(host_memory(), {3, 64, 64, 3}, MemoryCategory::data);
  Preprocessor preprocessor(preprocess);
  for (size_t i = 0; i < 3; ++i)
    preprocessor.run(few.pixels.data() + few.images[i].offset, few.images[i].width, few.images[i].height, false,
                     images.data() + i * 64 * 64 * 3);
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const LayerSpec& spec = network.layers()[i].spec;
    if (!spec.has_parameters()) continue;
    SCOPED_TRACE(spec.name);
    TensorView<const float> x = std::as_const(images).view();
    std::optional<Pass> pass;
    if (i > 0) x = pass.emplace(network, 0, i, x.shape(), Pass::Mode::inference).forward(x);
    std::vector<float> copy(x.span().size());
    backend->copy_to_host(copy.data(), x.data(), x.span().size_bytes());
    const Hessian expected = moments_by_definition({copy.data(), x.shape()}, spec);
    // Sums of up to 675 products in float32.
    EXPECT_LE(relative_error(view(calibration.hessians.at(spec.name + ".weight")), view(expected)), 1e-5);
  }
}

TEST_F(CalibrationTest, PositionsDependOnTheSeedAndNotOnTheBatches) {
  const Calibration one = measure({.batch_size = 60, .positions = 5, .seed = 3});
  const Calibration other = measure({.batch_size = 7, .positions = 5, .seed = 3});
  const Calibration again = measure({.batch_size = 7, .positions = 5, .seed = 3});
  const Calibration seeded = measure({.batch_size = 7, .positions = 5, .seed = 4});
  EXPECT_EQ(one.images, 60);
  for (const auto& [weight, hessian] : one.hessians) {
    SCOPED_TRACE(weight);
    EXPECT_LE(relative_error(view(hessian), view(other.hessians.at(weight))), 1e-5);
    EXPECT_EQ(other.hessians.at(weight).values, again.hessians.at(weight).values);
    if (weight.starts_with("features.0")) {
      EXPECT_GT(relative_error(view(hessian), view(seeded.hessians.at(weight))), 1e-3);
    }
  }
}

TEST(PositionsFor, ManyImagesAreLookedAtInFewerPlaces) {
  EXPECT_EQ(positions_for(1), 64);
  EXPECT_EQ(positions_for(2000), 64);
  EXPECT_EQ(positions_for(20'000), 6);
  EXPECT_EQ(positions_for(int64_t{1} << 40), 1);
}

TEST_F(CalibrationTest, GptqNeverGivesALayerMoreOutputErrorThanNearest) {
  const StateDict model = small_alexnet(1);
  const Calibration calibration = measure({});
  for (const auto& [weight, hessian] : calibration.hessians)
    for (const char* scheme : {"linear:4", "linear:3:row", "linear:2:block:16:f16:zero-point", "kmeans:2", "kmeans:3",
                               "nf4", "dynamic-tree:3:tile:3x3", "stable-embedding:3", "fp8-e4m3"})
      for (const ColumnOrder order : {ColumnOrder::natural, ColumnOrder::diagonal}) {
        SCOPED_TRACE(weight + " as " + scheme);
        const Tensor<float>& values = model.at(weight).values();
        const auto errors = [&](Rounding rounding) {
          const PackedTensor packed = quantize(values.view(), parse_scheme(scheme), weight,
                                               {.rounding = rounding, .order = order, .hessian = &hessian});
          Tensor<float> rounded(host_memory(), values.shape(), MemoryCategory::data);
          dequantize(packed, rounded.view());
          return testing::output_error(values.view(), std::as_const(rounded).view(), hessian);
        };
        const std::vector<double> nearest = errors(Rounding::nearest);
        const std::vector<double> by_gptq = errors(Rounding::gptq);
        for (size_t row = 0; row < nearest.size(); ++row) ASSERT_LE(by_gptq[row], nearest[row]) << row;
        EXPECT_LT(std::accumulate(by_gptq.begin(), by_gptq.end(), 0.0),
                  std::accumulate(nearest.begin(), nearest.end(), 0.0));
      }
}

TEST_F(CalibrationTest, RangesAreThoseOfTheInputsOfEvenlySpreadImages) {
  const auto backend = make_test_backend();
  Network network(*backend, small_alexnet(1));
  Dataset spread = images_;  // 3 of 60: the last of each 20
  spread.images = {images_.images[19], images_.images[39], images_.images[59]};
  spread.labels.resize(3);
  const Preprocess preprocess = Preprocess::for_image_size(64);
  const Calibration some = calibrate(network, images_, preprocess, {.batch_size = 7, .range_images = 3});
  const Calibration alone = calibrate(network, spread, preprocess, {});
  EXPECT_EQ(some.ranges.size(), 8U);
  for (const auto& [layer, range] : alone.ranges) {
    SCOPED_TRACE(layer);
    EXPECT_NEAR(some.ranges.at(layer), range, 1e-5 * range);  // sums of other batches
  }
  // So few inputs are all within the percentile: the range is the largest.
  Preprocessor preprocessor(preprocess);
  std::vector<float> image(3 * 64 * 64);
  float largest = 0;
  for (const Dataset::Image& each : spread.images) {
    preprocessor.run(spread.pixels.data() + each.offset, each.width, each.height, false, image.data());
    for (const float value : image) largest = std::max(largest, std::fabs(value));
  }
  EXPECT_EQ(alone.ranges.at("features.0"), largest);
}

TEST_F(CalibrationTest, StopsWhenAskedAndNeedsImages) {
  const auto backend = make_test_backend();
  Network network(*backend, small_alexnet(1));
  EXPECT_THROW(
      calibrate(network, images_, Preprocess::for_image_size(64), {}, [](int64_t done, int64_t) { return done > 0; }),
      Interrupted);
  EXPECT_THROW(calibrate(network, Dataset{}, Preprocess::for_image_size(64), {}), UsageError);
}

TEST_F(CalibrationTest, RoundTripsThroughAFile) {
  const Calibration calibration = measure({.positions = 9, .seed = 5});
  const auto path = folder_->path() / "c.safetensors";
  save_calibration(path, calibration);
  const Calibration read = load_calibration(path, small_alexnet(1));
  EXPECT_EQ(read.images, 60);
  EXPECT_EQ(read.positions, 9);
  EXPECT_EQ(read.seed, 5U);
  EXPECT_EQ(read.image_size, 64);
  EXPECT_EQ(read.data, "stand-in, train");
  EXPECT_EQ(read.data_fingerprint, calibration.data_fingerprint);
  for (const auto& [weight, hessian] : calibration.hessians) EXPECT_EQ(read.hessians.at(weight).values, hessian.values);
  EXPECT_EQ(read.ranges, calibration.ranges);
  EXPECT_EQ(read.fisher, calibration.fisher);
  ASSERT_EQ(read.fisher.size(), 3U);
  EXPECT_THROW(load_calibration(path, small_alexnet(2)), UsageError) << "another model";
}

TEST_F(CalibrationTest, BrokenFilesAreRefused) {
  Calibration calibration = measure({.positions = 4});
  const StateDict model = small_alexnet(1);
  const auto path = folder_->path() / "b.safetensors";
  save_calibration(path, calibration);
  std::ifstream file(path, std::ios::binary);
  const std::string whole(std::istreambuf_iterator<char>(file), {});
  const auto refuse = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    EXPECT_THROW(load_calibration(path, model), FormatError);
  };
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1})
    refuse(whole.substr(0, length));
  std::string flipped = whole;
  flipped[whole.size() - 20] = static_cast<char>(flipped[whole.size() - 20] ^ 1);
  refuse(flipped);

  save_state_dict(path, model);
  EXPECT_THROW(load_calibration(path, model), FormatError) << "a model is no calibration";

  // A file of the right form with impossible values; its checksums are right.
  const auto refuse_saved = [&](auto change) {
    Calibration wrong = calibration;
    change(wrong);
    save_calibration(path, wrong);
    EXPECT_THROW(load_calibration(path, model), FormatError);
  };
  refuse_saved([](Calibration& c) { c.hessians.erase("features.3.weight"); });
  refuse_saved([](Calibration& c) { c.hessians.at("features.3.weight").values[0] = NAN; });
  refuse_saved([](Calibration& c) { c.hessians.at("features.3.weight").values[0] = -1; });
  refuse_saved([](Calibration& c) { c.hessians.at("features.3.weight").values[1] = 1e30F; });
  refuse_saved([](Calibration& c) { c.hessians.at("features.3.weight") = c.hessians.at("features.0.weight"); });
  refuse_saved([](Calibration& c) { c.fisher.erase("classifier.4.weight"); });
  refuse_saved([](Calibration& c) { c.fisher.at("classifier.4.weight")[1] = NAN; });
  refuse_saved([](Calibration& c) { c.fisher.at("classifier.4.weight")[1] = -1; });
  refuse_saved([](Calibration& c) { c.fisher.at("classifier.4.weight").pop_back(); });
  refuse_saved([](Calibration& c) { c.data = std::string(100'000, 'x'); });
  refuse_saved([](Calibration& c) { c.images = -1; });
  refuse_saved([](Calibration& c) { c.ranges.at("features.3") = NAN; });
  refuse_saved([](Calibration& c) { c.ranges.at("features.3") = -1; });
}

}  // namespace
}  // namespace nibblenet
