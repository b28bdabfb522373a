#include "kernels/cuda/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "tests/hostexec/fake_runtime.h"
#include "tests/kernels/schemes.h"

// Tests of kernels/cuda/device over a CUDA runtime that refuses when told to.

namespace nibblenet {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::on;
using testing::quantized;
using testing::uniform;
using testing::Values;

class CudaDevice : public ::testing::Test {
 protected:
  void TearDown() override {
    hostexec::set_device_count(1);
    hostexec::set_memory_limit(size_t{4} << 30);
  }
};

template <class E, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

TEST_F(CudaDevice, SaysWhenThereIsNone) {
  EXPECT_EQ(cuda_problem(), std::nullopt);
  hostexec::set_device_count(0);
  EXPECT_EQ(cuda_problem(), "the driver sees no GPU");
  EXPECT_THROW(CudaBackend(), CudaError);
}

TEST_F(CudaDevice, FullMemoryIsAnErrorThatSaysHowMuch) {
  CudaBackend backend;
  hostexec::set_memory_limit(1000);
  EXPECT_THAT(message_of<CudaError>([&] { backend.allocate(2000, MemoryCategory::data); }),
              AllOf(HasSubstr("2000 bytes"), HasSubstr("0 of 1000"), HasSubstr("--batch")));
  EXPECT_EQ(backend.meter().live_total(), 0U);
}

TEST_F(CudaDevice, ReportsWhatTheMeterCounts) {
  CudaBackend backend;
  for (const char* scheme : {"linear:3:row", "stable-embedding:5", "linear:8:block:7:zero-point"}) {
    const size_t before = backend.device_memory()->used;
    const auto weight = backend.make_weight(quantized({5, 3, 3, 3}, parse_scheme(scheme), 1));
    EXPECT_EQ(static_cast<int64_t>(backend.device_memory()->used - before), weight->resident().total()) << scheme;
  }
}

TEST_F(CudaDevice, CountsItsEnergyWhereTheDriverDoes) {
  setenv("NIBBLENET_NVML", "/there/is/none.so", 1);
  EXPECT_FALSE(CudaBackend().joules());
  setenv("NIBBLENET_NVML", NIBBLENET_FAKE_NVML, 1);
  CudaBackend backend;
  const auto first = backend.joules(), second = backend.joules();
  unsetenv("NIBBLENET_NVML");
  ASSERT_TRUE(first && second);
  EXPECT_DOUBLE_EQ(*second - *first, 1.0);
}

TEST_F(CudaDevice, AGraphReplaysWhatItCaptured) {
  CudaBackend backend;
  const Values x = uniform({3, 33}, 1);
  Tensor<float> data = on(backend, x);
  Graph graph(backend.stream(), [&] { backend.sgd_step(data.view(), data.view(), data.view(), {1.0F, 0.0F, 0.0F}); });
  EXPECT_EQ(testing::from(backend, data.view()), x) << "captured, not run";
  graph.launch(backend.stream());
  EXPECT_EQ(testing::from(backend, data.view()), Values(x.shape)) << "v = g = w, w -= v";
  EXPECT_THROW(Graph(backend.stream(), [&] { testing::from(backend, data.view()); }), CudaError)
      << "waiting cannot be captured";
  EXPECT_EQ(testing::from(backend, data.view()), Values(x.shape)) << "the stream works again";
}

TEST_F(CudaDevice, UploadsKeepWhatTheyWereGiven) {
  hostexec::set_late_uploads(true);
  CudaBackend backend;
  Tensor<float> small(backend, {20, 3}, MemoryCategory::data);
  std::vector<float> row(3);
  for (int64_t i = 0; i < 20; ++i) {  // more than there are buffers
    std::ranges::fill(row, static_cast<float>(i));
    backend.copy_from_host(small.data() + 3 * i, row.data(), sizeof(float) * row.size());
  }
  std::ranges::fill(row, -1.0F);
  const Values rows = testing::from(backend, small.view());
  for (size_t i = 0; i < rows.data.size(); ++i) EXPECT_EQ(rows.data[i], static_cast<float>(i / 3));

  Values large = uniform({5, 1 << 20}, 1);  // ten buffers' worth
  const Values expected = large;
  const Tensor<float> copy = on(backend, large);
  std::ranges::fill(large.data, 0.0F);
  EXPECT_EQ(testing::from(backend, copy.view()), expected);
  hostexec::set_late_uploads(false);
}

TEST_F(CudaDevice, DownloadsArriveWhenTheyAreFinished) {
  CudaBackend backend;
  Tensor<float> x = on(backend, uniform({3, 33}, 1)), large = on(backend, uniform({40, 1000}, 2));
  const Values expected = testing::from(backend, x.view()), of_large = testing::from(backend, large.view());
  Values first(x.shape()), second(x.shape()), third(large.shape());
  const Values zeros(x.shape());
  const auto later = [&](Values& to, const Tensor<float>& from) {
    backend.copy_to_host_later(to.data.data(), from.data(), sizeof(float) * to.data.size());
  };
  later(first, x);
  EXPECT_EQ(first, zeros) << "not yet";
  backend.copy_from_host(x.data(), zeros.data.data(), sizeof(float) * zeros.data.size());
  later(second, x);
  later(third, large);  // more than there was room for
  backend.finish_copies();
  EXPECT_EQ(first, expected) << "of before the change";
  EXPECT_EQ(second, zeros);
  EXPECT_EQ(third, of_large);
  backend.finish_copies();  // nothing is left
}

TEST_F(CudaDevice, EventsMeasureTime) {
  Stream stream;
  Event start, end;
  start.record(stream);
  end.record(stream);
  end.synchronize();
  EXPECT_GE(end.since(start), 0.0F);
}

TEST_F(CudaDevice, LaunchesCountTheirWork) {
  CudaBackend backend;
  Tensor<float> x = on(backend, uniform({10}, 1));
  const Work before = backend.stream().work();
  backend.relu_forward(x.view(), x.view());
  EXPECT_EQ(backend.stream().work().bytes - before.bytes, 80);
  EXPECT_EQ(backend.stream().launches(), 1);
}

}  // namespace
}  // namespace nibblenet
