#include "kernels/cuda/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/device/launch.cuh"
#include "tests/hostexec/fake_runtime.h"
#include "tests/hostexec/fake_stream.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

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
    hostexec::set_architecture(90);
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

TEST_F(CudaDevice, ARanksNumberChoosesAmongTheGpus) {
  hostexec::set_device_count(3);
  std::vector<std::string> ids;
  for (const int number : {0, 1, 2, 4}) {
    choose_gpu(number);
    ids.push_back(Device().id());
    EXPECT_EQ(Device().number(), number % 3);
  }
  EXPECT_EQ(ids[3], ids[1]);
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_NE(ids[1], ids[2]);
  EXPECT_EQ(ids[0].size(), 32U);
  choose_gpu(0);
}

/// Work behind other work that is not done, on one stream, while another goes on.
TEST_F(CudaDevice, AStreamWaitsForAnEventOfAnother) {
  Stream first, second;
  bool done = false;
  int order = 0, of_kernel = 0;
  first.get()->waiting.push_back([&] { return done; });
  Event event, behind;
  event.record(first);
  second.wait(event);
  hostexec::run_on(second.get(), [&] { of_kernel = ++order; });
  behind.record(second);
  EXPECT_FALSE(event.reached());
  EXPECT_FALSE(behind.reached());
  EXPECT_EQ(order, 0);
  done = true;
  EXPECT_TRUE(behind.reached());
  EXPECT_EQ(of_kernel, 1);
  EXPECT_TRUE(event.reached());
}

TEST_F(CudaDevice, ABackendsWorkTakesItsPlaceInAStreamOfOthers) {
  CudaBackend backend;
  for (const bool by_default : {false, true}) {
    Stream made;
    const uintptr_t number = by_default ? 0 : reinterpret_cast<uintptr_t>(made.get());
    Stream lent(reinterpret_cast<CUstream_st*>(number));
    const Values x = uniform({7}, 1);
    Tensor<float> from = on(backend, Values(x.shape)), to = on(backend, Values(x.shape));
    Event written, read;
    bool ready = false;
    Stream other;
    other.get()->waiting.push_back([&] { return ready; });
    written.record(other);
    lent.wait(written);
    copy_on_device(from.data(), x.data.data(), from.view().span().size_bytes(), lent);
    backend.wait_for_stream(number);
    backend.convert(to.view(), std::as_const(from).view());
    backend.let_stream_wait(number);
    std::vector<float> seen(7);
    copy_on_device(seen.data(), to.data(), 7 * sizeof(float), lent);
    EXPECT_EQ(seen, std::vector<float>(7)) << "nothing is there yet";
    ready = true;
    lent.synchronize();
    EXPECT_EQ(seen, x.data);
  }
  EXPECT_EQ(backend.gpu_number(), 0);
}

TEST_F(CudaDevice, AStreamOfOthersOutlivesItsView) {
  Stream made;
  {
    const Stream lent(made.get());
    EXPECT_EQ(lent.get(), made.get());
    EXPECT_FALSE(lent.uses_pdl()) << "the kernel in front may be somebody else's";
    EXPECT_TRUE(made.uses_pdl());
  }
  made.synchronize();
}

TEST_F(CudaDevice, TheCpuHasNoStreams) {
  CpuBackend backend;
  EXPECT_EQ(backend.gpu_number(), std::nullopt);
  EXPECT_THROW(backend.wait_for_stream(0), Error);
  EXPECT_THROW(backend.let_stream_wait(0), Error);
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

TEST_F(CudaDevice, TheSharedMemoryThatAKernelMayHaveNeverShrinks) {
  static const char kernel = 0, other = 0;
  allow_shared_memory("kernel", &kernel, 16 << 10, false);
  EXPECT_EQ(hostexec::allowed_shared_memory(&kernel), 0U) << "every kernel has that much";
  allow_shared_memory("kernel", &kernel, 60 << 10, true);
  const int before = hostexec::attributes_set();
  allow_shared_memory("kernel", &kernel, 20 << 10, true);
  EXPECT_EQ(hostexec::allowed_shared_memory(&kernel), 60U << 10);
  EXPECT_EQ(hostexec::attributes_set(), before) << "nothing to set";
  EXPECT_THAT(message_of<CudaError>([&] { allow_shared_memory("kernel", &kernel, 300 << 10, true); }),
              HasSubstr("kernel: "));
  EXPECT_EQ(hostexec::allowed_shared_memory(&kernel), 60U << 10);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i)
    threads.emplace_back([i] {
      for (size_t kilobytes = 17 + i; kilobytes < 100; kilobytes += 4)
        allow_shared_memory("kernel", &other, (117 - kilobytes) << 10, false);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(hostexec::allowed_shared_memory(&other), 100U << 10);
}

/// conv2d_forward on a GPU of this compute capability.
Values convolution_on(int architecture, const Values& x, const PackedTensor& packed) {
  hostexec::set_architecture(architecture);
  CudaBackend backend;
  backend.choose_kernels(KernelChoice{KernelChoice::Mode::portable}.without(Product::few_pixels));
  const Tensor<float> bias = on(backend, Values({packed.shape[0]}));
  const Buffer<f16> input = testing::fp16_on(backend, x);
  const auto weight = backend.make_weight(packed);
  return testing::output_of(backend, {x.shape[0], x.shape[1], x.shape[2], packed.shape[0]}, [&](TensorView<float> y) {
    backend.conv2d_forward(y, TensorView<const f16>(input.data(), x.shape), *weight, bias.view(), {3, 1, 1},
                           Epilogue::none);
  });
}

TEST_F(CudaDevice, AProductOfMuchSharedMemoryFitsTheSmallestBlocks) {
  // 99 KB of slices and superblocks, were it not for what the kernel itself declares.
  const Values x = uniform({1, 2, 85, 128}, 1);
  const PackedTensor packed = quantized({64, 128, 3, 3}, parse_scheme("linear:4:channel"), 2);
  EXPECT_TRUE(testing::same_bits(convolution_on(89, x, packed), convolution_on(90, x, packed)));
}

/// linear_forward on a GPU of this compute capability.
Values product_on(int architecture, const Values& x, const Values& w) {
  hostexec::set_architecture(architecture);
  CudaBackend backend;
  const Tensor<float> bias = on(backend, Values({w.shape[0]}));
  const Buffer<f16> input = testing::fp16_on(backend, x);
  const auto weight = backend.make_weight(w.view(), Precision::float16);
  return testing::output_of(backend, {x.shape[0], w.shape[0]}, [&](TensorView<float> y) {
    backend.linear_forward(y, TensorView<const f16>(input.data(), x.shape), *weight, bias.view(), Epilogue::none);
  });
}

TEST_F(CudaDevice, LinearLayersThatGoRoundTheirRingsHaveTheSameBitsOnEveryGpu) {
  const Values x = uniform({3, 384}, 1), w = uniform({128, 384}, 2);  // 12 pieces a warp, for rings of 6 and 9
  const Values y = product_on(90, x, w);
  EXPECT_TRUE(testing::same_bits(product_on(80, x, w), y));
  CpuBackend cpu;
  const Values expected = testing::linear(cpu, x, *cpu.make_weight(w.view()), Values({128}));
  EXPECT_LE(testing::relative_error(y.view(), expected.view()), 2e-3);
}

}  // namespace
}  // namespace nibblenet
