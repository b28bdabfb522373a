#pragma once

#include <nccl.h>

#include <optional>
#include <string>

#include "engine/core/shared_library.h"

/// Declares a pointer to a function, and finds the function in the member `library` by its name.
#define NIBBLENET_FUNCTION(pointer, function) decltype(&function) pointer = library.find<decltype(&function)>(#function)

namespace nibblenet {

/// The functions of NCCL 2 that ranks call, loaded at run time: programs start without it.
struct Nccl {
  SharedLibrary library{"libnccl.so." + std::to_string(NCCL_MAJOR), "NIBBLENET_NCCL"};
  NIBBLENET_FUNCTION(get_version, ncclGetVersion);
  NIBBLENET_FUNCTION(get_unique_id, ncclGetUniqueId);
  NIBBLENET_FUNCTION(init_rank, ncclCommInitRankConfig);
  NIBBLENET_FUNCTION(abort, ncclCommAbort);
  NIBBLENET_FUNCTION(get_async_error, ncclCommGetAsyncError);
  NIBBLENET_FUNCTION(get_error_string, ncclGetErrorString);
  NIBBLENET_FUNCTION(get_last_error, ncclGetLastError);
  NIBBLENET_FUNCTION(group_start, ncclGroupStart);
  NIBBLENET_FUNCTION(group_end, ncclGroupEnd);
  NIBBLENET_FUNCTION(send, ncclSend);
  NIBBLENET_FUNCTION(receive, ncclRecv);
  NIBBLENET_FUNCTION(all_reduce, ncclAllReduce);

  /// "2.28.9"
  std::string version() const;
};

/// The library that NIBBLENET_NCCL names, else the system's. Throws Error when it cannot be loaded.
const Nccl& nccl();

}  // namespace nibblenet

#undef NIBBLENET_FUNCTION
