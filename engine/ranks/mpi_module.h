#pragma once

#include <cstdint>

// What the module that links MPI gives to the programs, which load it only under a launcher. Plain
// C, so that the two need not come from one compiler.

extern "C" {

/// Bytes for a rank, or room for bytes of a rank.
struct NibblenetMessage {
  int32_t peer;
  void* data;
  uint64_t bytes;
};

/// The functions of the module. All but `abort` return 0, or 1 with a text in error().
struct NibblenetMpi {
  int32_t version;  ///< nibblenet_mpi_version
  /// Starts MPI, and gives this process's rank and the number of ranks.
  int32_t (*start)(int32_t* rank, int32_t* size);
  /// Begins to send and to receive. The messages' bytes stay until poll() finds them done.
  int32_t (*begin)(const NibblenetMessage* sent, int32_t sends, const NibblenetMessage* received, int32_t receives);
  /// Begins to add up the values of all ranks in place, in an order that MPI chooses.
  int32_t (*begin_sum)(float* values, uint64_t count);
  /// Writes the number of operations that are not done, and a rank that one waits for, or -1.
  int32_t (*poll)(int32_t* pending, int32_t* peer);
  /// Ends MPI. Waits for all ranks.
  int32_t (*finish)();
  /// Ends the processes of all ranks.
  void (*abort)(int32_t code);
  const char* (*error)();
};

/// The one function that the module exports.
const NibblenetMpi* nibblenet_mpi();
}

/// Changes with the functions.
inline constexpr int32_t nibblenet_mpi_version = 2;
