#include "tests/support/golden.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>

namespace nibblenet::testing {

std::filesystem::path golden_folder() {
  const char* folder = std::getenv("NIBBLENET_GOLDEN");
  return folder != nullptr && *folder != '\0' ? folder : NIBBLENET_TEST_DATA;
}

std::filesystem::path test_data_folder() { return NIBBLENET_TEST_DATA; }

Tensor<float> golden(const SafetensorsFile& file, const std::string& name) {
  return read_float(file, file.at(name), host_memory(), MemoryCategory::data);
}

double relative_error(TensorView<const float> actual, TensorView<const float> expected) {
  expect_shape(actual.shape(), expected.shape(), "compared tensors");
  double difference = 0;
  double norm = 0;
  for (int64_t i = 0; i < actual.elements(); ++i) {
    difference += std::pow(static_cast<double>(actual[i]) - static_cast<double>(expected[i]), 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "nibblenet-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) fail<IoError>("cannot make a temporary folder at {}", pattern);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace nibblenet::testing
