#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "engine/core/error.h"

namespace nibblenet {

/// A library that is loaded when somebody asks for it, so that our programs start where it is not
/// installed; kept for the life of the process.
class SharedLibrary {
 public:
  /// The file that the environment variable `variable` names, else the library `name` where the
  /// system looks for it, else in the toolkit's own folder. Throws CudaError.
  SharedLibrary(std::string name, const char* variable) : name_(std::move(name)) {
    std::vector<std::string> candidates = {name_, "/usr/local/cuda/lib64/" + name_};
    const char* given = std::getenv(variable);
    if (given != nullptr && *given != '\0') candidates = {given};
    for (const std::string& candidate : candidates) {
      handle_ = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
    }
    fail<CudaError>("cannot load {}; install it, or name its file in {} ({})", name_, variable, dlerror());
  }

  /// The library's `symbol`. Throws CudaError if there is none.
  template <class Function>
  Function find(const char* symbol) const {
    void* function = dlsym(handle_, symbol);
    if (function == nullptr) fail<CudaError>("{} has no {}; another version is needed", name_, symbol);
    return reinterpret_cast<Function>(function);
  }

 private:
  std::string name_;
  void* handle_ = nullptr;
};

}  // namespace nibblenet
