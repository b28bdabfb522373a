#include "tools/common/version.h"

#include <fmt/format.h>

#include "commit.h"  // made by commit.cmake
#include "kernels/backend.h"

namespace nibblenet::tools {
namespace {

std::string devices() {
  std::string text = fmt::format("cpu: {}\n", make_backend("cpu", 0)->description());
  if (const auto problem = cuda_unusable()) return text + fmt::format("  cuda: none, {}\n", *problem);
  return text + fmt::format("  cuda: {}\n", make_backend("cuda", 0)->description());
}

}  // namespace

nlohmann::json version_json() { return {{"version", NIBBLENET_PROJECT_VERSION}, {"commit", NIBBLENET_COMMIT}}; }

std::string version_text(std::string_view tool) {
#ifdef __clang__
  constexpr const char* compiler = "Clang";
#else
  constexpr const char* compiler = "GCC";
#endif
  return fmt::format("{} (nibblenet) {}\ncommit: {}\nbuild: {} {}, {}{}\ndevices:\n  {}", tool,
                     NIBBLENET_PROJECT_VERSION, NIBBLENET_COMMIT, compiler, __VERSION__, NIBBLENET_BUILD,
                     NIBBLENET_GPUS, devices());
}

}  // namespace nibblenet::tools
