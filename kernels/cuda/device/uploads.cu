#include <algorithm>
#include <cstring>

#include "kernels/cuda/device/check.h"
#include "kernels/cuda/device/uploads.h"

namespace nibblenet {

Uploads::~Uploads() {
  for (Piece& piece : pieces_) cudaFreeHost(piece.memory);  // which waits for the device
}

Uploads::Piece& Uploads::next_free() {
  Piece& piece = pieces_[next_++ % pieces_.size()];
  if (piece.memory == nullptr)
    check(cudaMallocHost(&piece.memory, piece_bytes), "cudaMallocHost");
  else
    piece.fetched.synchronize();
  return piece;
}

void Uploads::copy(void* destination, const void* host, size_t bytes, Stream& stream) {
  for (size_t done = 0; done < bytes; done += piece_bytes) {
    const size_t count = std::min(bytes - done, piece_bytes);
    Piece& piece = next_free();
    std::memcpy(piece.memory, static_cast<const std::byte*>(host) + done, count);
    check(cudaMemcpyAsync(static_cast<std::byte*>(destination) + done, piece.memory, count, cudaMemcpyHostToDevice,
                          stream.get()),
          "copying to the GPU");
    piece.fetched.record(stream);
  }
}

}  // namespace nibblenet
