#include "training/parallel/processor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <oneapi/dnnl/dnnl.hpp>
#include <utility>

namespace nibblenet {
namespace {

std::string instructions() {
  constexpr std::pair<dnnl::cpu_isa, const char*> names[] = {
      {dnnl::cpu_isa::sse41, "SSE4.1"},
      {dnnl::cpu_isa::avx, "AVX"},
      {dnnl::cpu_isa::avx2, "AVX2"},
      {dnnl::cpu_isa::avx512_core, "AVX-512"},
  };
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  for (const auto& [known, name] : names)
    if (isa == known) return name;
  return fmt::format("instructions {:#x}", static_cast<unsigned>(isa));
}

}  // namespace

std::string processor_of_blocks() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}, caches of {}, {} and {} KiB, oneDNN {}.{}.{}", instructions(),
                     sysconf(_SC_LEVEL1_DCACHE_SIZE) / 1024, sysconf(_SC_LEVEL2_CACHE_SIZE) / 1024,
                     sysconf(_SC_LEVEL3_CACHE_SIZE) / 1024, version->major, version->minor, version->patch);
}

std::string processor_of_blocks(const Backend& gpu) {
  const char* const kernels = std::getenv("NIBBLENET_KERNELS");
  return gpu.description() + (kernels == nullptr ? "" : fmt::format(", kernels {}", kernels));
}

}  // namespace nibblenet
