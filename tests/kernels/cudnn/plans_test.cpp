#include <gtest/gtest.h>

#include "engine/core/tensor.h"
#include "kernels/cudnn/convolution_graph.h"

// The plans that the installed cuDNN makes for our graphs. It plans for a GPU that is described to
// it, and needs none.

namespace nibblenet {
namespace {

/// An H200, by cuDNN's names; sizes from NVIDIA's documentation of compute capability 9.0.
constexpr const char* h200 = R"({
  "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,
  "isTccDriver": 0, "multiProcessorCount": 132, "warpSize": 32, "maxThreadsPerSM": 2048, "maxThreadsPerBlock": 1024,
  "maxCtasPerSM": 32, "maxBlockSize": [1024, 1024, 64], "maxGridSize": [2147483647, 65535, 65535],
  "regsPerBlock": 65536, "maxRegistersPerSM": 65536, "maxSharedMemoryPerBlock": 49152,
  "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024, "supportCoopLaunch": 1,
  "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "l2CacheSize": 62914560, "totalGlobalMem": 150000000000})";

class CudnnPlans : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto problem = cudnn_problem()) GTEST_SKIP() << *problem;
    if (cudnn().get_version() < 91900) GTEST_SKIP() << "this cuDNN may not plan without a GPU";
  }
};

TEST_F(CudnnPlans, AreFoundForEveryConvolutionOfAlexNet) {
  struct Layer {
    Shape of_image;  ///< [1, H, W, C]
    int64_t filters;
    Window window;
  };
  const std::vector<Layer> layers = {{{1, 224, 224, 3}, 64, {11, 4, 2}},
                                     {{1, 27, 27, 64}, 192, {5, 1, 2}},
                                     {{1, 13, 13, 192}, 384, {3, 1, 1}},
                                     {{1, 13, 13, 384}, 256, {3, 1, 1}},
                                     {{1, 13, 13, 256}, 256, {3, 1, 1}}};
  for (const auto& [image, filters, window] : layers)
    for (const int64_t batch : {1, 1024})
      for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
        SCOPED_TRACE(to_string(image) + ", batch " + std::to_string(batch));
        const Shape x = {batch, image[1], image[2], image[3]};
        const Shape y = {batch, window.output(image[1]), window.output(image[2]), filters};
        const ConvolutionGraph graph(x, y, window, epilogue, h200);
        EXPECT_GE(graph.plans(), 1U);
        EXPECT_LE(graph.plans(), 8U) << "each may take a second";
        for (size_t i = 0; i < graph.plans(); ++i) EXPECT_LT(graph.workspace(i), size_t{1} << 33);
      }
}

TEST_F(CudnnPlans, AreNoneForAGpuThatIsNotDescribed) {
  EXPECT_THROW(ConvolutionGraph({1, 13, 13, 64}, {1, 13, 13, 64}, {3, 1, 1}, Epilogue::relu, "{}"), CudaError);
}

}  // namespace
}  // namespace nibblenet
