#include <gtest/gtest.h>

#include "engine/io/preprocess.h"
#include "layers/network/pass.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/unrounded.h"

// A network whose first convolution is folded with the preparation of its images.

namespace nibblenet {
namespace {

using testing::pack_all;
using testing::relative_error;
using testing::small_alexnet;

constexpr int folded_image_size = 112;
constexpr int64_t batch = 3;

ResampleTables tables() { return make_resample_tables(Preprocess::for_image_size(folded_image_size), 32, 32); }

std::vector<uint8_t> random_bytes() {
  std::vector<uint8_t> images(batch * 32 * 32 * 3);
  Random random(3);
  for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
  return images;
}

/// "" leaves it in floats.
StateDict network_of(const std::string& scheme) {
  StateDict dict = small_alexnet(6);
  if (!scheme.empty()) pack_all(dict, parse_scheme(scheme));
  return dict;
}

class FoldedNetwork : public ::testing::Test {
 protected:
  Pass pass_for(Network& network) const {
    return {
        network, 0, network.layers().size(), {batch, folded_image_size, folded_image_size, 3}, Pass::Mode::inference};
  }
  std::vector<float> logits(Network& network, auto images) const {
    Pass pass = pass_for(network);
    const auto view = pass.forward(images);
    return {view.begin(), view.end()};
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu", 2);
  ResampleTables tables_ = tables();
  std::vector<uint8_t> bytes_ = random_bytes();
  TensorView<const uint8_t> images_{bytes_.data(), {batch, 32, 32, 3}};
};

TEST_F(FoldedNetwork, GivesTheLogitsOfImagesThatAreNotRounded) {
  const std::vector<double> exact = testing::unrounded(tables_, bytes_);
  const std::vector<float> prepared(exact.begin(), exact.end());
  const TensorView<const float> x(prepared.data(), {batch, folded_image_size, folded_image_size, 3});
  for (const char* scheme : {"", "linear:4:channel", "linear:3:block:16:f16", "dynamic-tree:5:tile:3x5", "kmeans:2",
                             "stable-embedding:5:sorted:32"}) {
    SCOPED_TRACE(scheme);
    Network plain(*backend_, network_of(scheme));
    Network folded(*backend_, network_of(scheme), Precision::float32, &tables_);
    EXPECT_TRUE(folded.folded() && !plain.folded());
    const std::vector<float> expected = logits(plain, x), actual = logits(folded, images_);
    const Shape shape{batch, plain.classes()};
    EXPECT_LE(relative_error({actual.data(), shape}, {expected.data(), shape}), 1e-5);
  }
}

TEST_F(FoldedNetwork, ASmallerBatchGivesTheSameLogits) {
  Network network(*backend_, network_of(""), Precision::float32, &tables_);
  Pass pass = pass_for(network);
  const auto all = pass.forward(images_);
  const std::vector<float> expected(all.begin() + network.classes(), all.end());
  const Shape shape{batch - 1, network.classes()};
  EXPECT_LE(relative_error(pass.forward(images_.slice(1, batch - 1)), {expected.data(), shape}), 1e-6);
}

TEST_F(FoldedNetwork, LedgerCountsFloatsAndEqualsTheMeter) {
  for (const char* scheme : {"", "linear:4:channel"}) {
    const Network network(*backend_, network_of(scheme), Precision::float32, &tables_);
    const std::vector<SizeRow> ledger = network.ledger();
    EXPECT_EQ(static_cast<int64_t>(backend_->meter().live_total()), sum(ledger, "total").resident.total());
    EXPECT_EQ(ledger[0].scheme, *scheme == 0 ? "float32 folded" : "linear:4:channel folded");
    EXPECT_EQ(ledger[0].resident.codes, 0);
    EXPECT_GT(ledger[0].resident.weights, 4 * ledger[0].weights) << "one filter for every pattern";
  }
}

TEST_F(FoldedNetwork, IsForInferenceFromBytesOnly) {
  const std::vector<float> zeros(batch * folded_image_size * folded_image_size * 3);
  const TensorView<const float> x(zeros.data(), {batch, folded_image_size, folded_image_size, 3});
  Network plain(*backend_, network_of(""));
  Network folded(*backend_, network_of(""), Precision::float32, &tables_);
  EXPECT_THROW(logits(folded, ConstActivations(x)), Error);
  EXPECT_THROW(logits(plain, images_), Error);
  EXPECT_THROW(pass_for(folded).forward(TensorView<const uint8_t>(bytes_.data(), {batch, 16, 64, 3})), ShapeError);
  EXPECT_THROW(Pass(folded, 0, folded.layers().size(), x.shape(), Pass::Mode::training), Error);
  const ResampleTables shrinking = make_resample_tables(Preprocess::for_image_size(folded_image_size), 500, 400);
  EXPECT_THROW(Network(*backend_, network_of(""), Precision::float32, &shrinking), UsageError);
}

}  // namespace
}  // namespace nibblenet
