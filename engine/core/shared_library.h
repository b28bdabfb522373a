#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "engine/core/error.h"

namespace nibblenet {

/// A shared library that is loaded at run time, so that our programs start where it is not
/// installed. It stays loaded for the life of the process.
class SharedLibrary {
 public:
  /// Loads the file that the environment variable `variable` names, else the library `name` from
  /// the system's paths, else from the CUDA toolkit's folder. Throws Error.
  SharedLibrary(std::string name, const char* variable) : name_(std::move(name)) {
    std::vector<std::string> candidates = {name_, "/usr/local/cuda/lib64/" + name_};
    const char* given = std::getenv(variable);
    if (given != nullptr && *given != '\0') candidates = {given};
    for (const std::string& candidate : candidates) {
      handle_ = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
    }
    fail<Error>("cannot load {}; install it, or name its file in {} ({})", name_, variable, dlerror());
  }

  /// The library's `symbol`. Throws Error if there is none.
  template <class Function>
  Function find(const char* symbol) const {
    void* function = dlsym(handle_, symbol);
    if (function == nullptr) fail<Error>("{} has no {}; another version is needed", name_, symbol);
    return reinterpret_cast<Function>(function);
  }

 private:
  std::string name_;
  void* handle_ = nullptr;
};

}  // namespace nibblenet
