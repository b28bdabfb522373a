#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/safetensors.h"

namespace nibblenet::testing {

/// The folder of golden data: NIBBLENET_GOLDEN when set (other seeds of the same cases must pass
/// too), else tests/data.
std::filesystem::path golden_folder();

/// tests/data, whatever the golden data's folder is.
std::filesystem::path test_data_folder();

/// A golden tensor as float32 on the host.
Tensor<float> golden(const SafetensorsFile& file, const std::string& name);

/// |actual - expected| / |expected| in the Euclidean norm; |actual| when expected is all zero.
double relative_error(TensorView<const float> actual, TensorView<const float> expected);

/// An empty folder of its own for the running test, removed when the object goes out of scope.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace nibblenet::testing
