#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "kernels/nccl/exchange_nccl.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "training/parallel/host_exchange.h"
#include "training/trainer.h"

// NCCL with one rank, which sends to itself: in host execution a stand-in for it, on a GPU the
// installed one.

namespace nibblenet {
namespace {

using testing::same_bits;
using testing::small_alexnet;
using testing::TemporaryFolder;

class NcclExchangeTest : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef NIBBLENET_FAKE_NCCL
    setenv("NIBBLENET_NCCL", NIBBLENET_FAKE_NCCL, 1);
#endif
    try {
      nccl();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    backend_ = std::make_unique<CudaBackend>();
  }

  Tensor<float> on_device(const std::vector<float>& values) {
    Tensor<float> tensor(*backend_, {static_cast<int64_t>(values.size())}, MemoryCategory::data);
    backend_->copy_from_host(tensor.data(), values.data(), values.size() * sizeof(float));
    return tensor;
  }
  std::vector<float> on_host(const Tensor<float>& tensor) { return backend_->to_host(tensor.view()); }

  OneRank one_;
  std::unique_ptr<CudaBackend> backend_;
};

TEST_F(NcclExchangeTest, WhatIsQueuedRunsInOrder) {
  NcclExchange exchange(*backend_, one_);
  EXPECT_EQ(exchange.name().rfind("NCCL 2.", 0), 0U) << exchange.name();
  const Tensor<float> x = on_device({1, 2, 3}), ones = on_device({1, 1, 1});
  Tensor<float> y = on_device({0, 0, 0}), w = on_device({4, 4, 4}), v = on_device({0, 0, 0});
  exchange.follow_backend();
  exchange.exchange(
      std::array{Exchange::Sent{0, x.view().span().first(1)}, Exchange::Sent{0, x.view().span().last(2)}},
      std::array{Exchange::Received{0, y.view().span().last(1)}, Exchange::Received{0, y.view().span().first(2)}});
  exchange.add(y.view(), ones.view());
  exchange.add_up(y.view().span());
  exchange.sgd_step(w.view(), v.view(), std::as_const(y).view(), {.learning_rate = 0.5F, .momentum = 0});
  exchange.exchange({}, {});
  exchange.finish();
  EXPECT_EQ(on_host(y), (std::vector<float>{3, 4, 2}));
  EXPECT_EQ(on_host(w), (std::vector<float>{2.5F, 2, 3}));
  exchange.finish();  // of nothing
}

TEST_F(NcclExchangeTest, TrainingByItHasTheBitsOfTrainingWithoutIt) {
  TemporaryFolder folder;
  write_standin(folder.path(), 22, 10, 1);
  const Dataset train = load_dataset(folder.path(), Split::train), test = load_dataset(folder.path(), Split::test);
  for (const Precision precision : {Precision::float32, Precision::float16})
    for (const bool frozen : {false, true}) {
      SCOPED_TRACE(::testing::Message() << to_string(precision) << ", frozen " << frozen);
      const TrainingOptions options = {.freeze_features = frozen,
                                       .epochs = 1,
                                       .batch_size = 10,
                                       .weight_decay = 1e-4,
                                       .precision = precision,
                                       .image_size = 64,
                                       .blocks = 3};
      const auto trained = [&](bool by_nccl) {
        Network network = Network::for_training(*backend_, small_alexnet(1), precision);
        Trainer trainer(network, train, test, options);
        std::optional<NcclExchange> exchange;
        if (by_nccl) exchange.emplace(*backend_, one_);
        trainer.by_blocks(1, one_, exchange ? &*exchange : nullptr);
        EXPECT_TRUE(trainer.run({}));
        return trainer.model();
      };
      EXPECT_TRUE(same_bits(trained(true), trained(false)));
    }
}

/// Notes when gradients of weights are computed, and when messages are queued.
struct Notes {
  std::string text;
};
class NotingBackend final : public CudaBackend {
 public:
  explicit NotingBackend(Notes& notes) : notes_(notes) {}
  void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                              Window window) override {
    notes_.text += 'g';
    CudaBackend::conv2d_backward_weight(dw, dbias, dy, x, window);
  }
  void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                              ConstActivations x) override {
    notes_.text += 'g';
    CudaBackend::linear_backward_weight(dw, dbias, dy, x);
  }

 private:
  Notes& notes_;
};
class NotingExchange final : public HostExchange {
 public:
  NotingExchange(Backend& backend, Ranks& ranks, Notes& notes) : HostExchange(backend, ranks), notes_(notes) {}
  void exchange(std::span<const Sent> sent, std::span<const Received> received) override {
    notes_.text += 'm';
    HostExchange::exchange(sent, received);
  }
  void finish() override { notes_.text += '.'; }

 private:
  Notes& notes_;
};

/// Of the last block, each layer's sums leave and its values come back before the next gradient.
TEST_F(NcclExchangeTest, LayersLeaveOneByOneDuringTheBackwardPass) {
  TemporaryFolder folder;
  write_standin(folder.path(), 10, 10, 1);
  const Dataset train = load_dataset(folder.path(), Split::train), test = load_dataset(folder.path(), Split::test);
  Notes notes;
  NotingBackend backend(notes);
  NotingExchange exchange(backend, one_, notes);
  Network network(backend, small_alexnet(1));
  Trainer trainer(network, train, test,
                  {.freeze_features = false, .epochs = 1, .batch_size = 10, .image_size = 64, .blocks = 5});
  trainer.by_blocks(1, one_, &exchange);
  EXPECT_TRUE(trainer.run({}));
  EXPECT_EQ(notes.text,
            "gggggggg"
            "gmmgmmgmmgmmgmmgmmgmmgmm"
            ".");
}

#ifdef NIBBLENET_FAKE_NCCL
TEST_F(NcclExchangeTest, AnErrorEndsItWithOneLine) {
  setenv("FAKE_NCCL_FAILS", "2", 1);
  NcclExchange exchange(*backend_, one_);
  Tensor<float> y = on_device({1, 2});
  exchange.add_up(y.view().span());
  exchange.finish();
  exchange.add_up(y.view().span());
  try {
    exchange.finish();
    ADD_FAILURE() << "no error";
  } catch (const CudaError& error) {
    EXPECT_STREQ(error.what(), "waiting for other ranks: NCCL says: unhandled system error (as the stand-in says)");
  }
  unsetenv("FAKE_NCCL_FAILS");
}
#endif

}  // namespace
}  // namespace nibblenet
