#pragma once

#include "kernels/cuda/gemm/im2col.cuh"

// Shared-memory tiles of the mma gradients (gemm/mma_gradient.cuh): a ring of both operands, 32
// elements of k deep. In memory, an operand's neighbours share either a row of the product or an
// index k. Tiles keep that order, so that copies take 16 bytes at a time; ldmatrix transposes where
// needed. 16-byte vectors are swizzled from row to row, so that the eight rows of a matrix lie in
// different banks.

namespace nibblenet {

inline constexpr int gradient_depth = 32;     ///< of k, between two barriers
inline constexpr int gradient_stages = 4;     ///< of the ring: one is multiplied, the others are in flight
inline constexpr int gradient_threads = 256;  ///< 2 rows of 4 warps

/// Tile whose neighbours share a row: [rows][32] fp16 values.
template <int size>
struct TileAlongK {
  static constexpr int rows = size;
  static constexpr int bytes = rows * gradient_depth * 2;
  static constexpr int copies = bytes / 16 / gradient_threads;  ///< of 16 bytes, by each thread

  /// Row and k of a thread's copy.
  static __device__ int row(int copy) { return (static_cast<int>(threadIdx.x) + copy * gradient_threads) / 4; }
  static __device__ int k(int) { return static_cast<int>(threadIdx.x) % 4 * 8; }
  static __device__ int offset(int row, int k) { return row * 64 + ((k / 8 ^ row / 2 % 4) << 4); }

  /// Loads the fragment of a: rows [row, row + 16), k [k, k + 16).
  static __device__ __forceinline__ void load_a(const unsigned char* tile, int row, int k, uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    ldmatrix_x4(a, tile + offset(row + lane % 16, k + lane / 16 * 8));
  }
};

/// Tile whose neighbours share k: [32][rows] fp16 values.
template <int size>
struct TileAlongRows {
  static constexpr int rows = size;
  static constexpr int bytes = rows * gradient_depth * 2;
  static constexpr int copies = bytes / 16 / gradient_threads;
  static constexpr int vectors = rows / 8;  ///< of one k

  static __device__ int row(int) { return static_cast<int>(threadIdx.x) % vectors * 8; }
  static __device__ int k(int copy) { return (static_cast<int>(threadIdx.x) + copy * gradient_threads) / vectors; }
  static __device__ int offset(int row, int k) { return k * rows * 2 + ((row / 8 ^ k % 8) << 4) + row % 8 * 2; }

  static __device__ __forceinline__ void load_a(const unsigned char* tile, int row, int k, uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    ldmatrix_x4_transposed(a, tile + offset(row + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
  }
  /// Loads the fragments of b: rows [row, row + 8), and the next eight.
  static __device__ __forceinline__ void load_b(const unsigned char* tile, int row, int k, uint32_t (&b)[2][2]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint32_t r[4];
    ldmatrix_x4_transposed(r, tile + offset(row + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
    b[0][0] = r[0];
    b[0][1] = r[1];
    b[1][0] = r[2];
    b[1][1] = r[3];
  }
};

// Operands. place(first) returns a thread's coordinates in its rows. copy() starts the thread's
// copies of the tile at k, with zeros outside the operand.

/// dy [N, P, Q, K] as [input pixels, R S K], K a multiple of 8.
template <int size>
struct ContributionTiles {
  using Tile = TileAlongK<size>;
  Contributions<f16> matrix;

  struct Place {
    Contributions<f16>::Row row[Tile::copies];
  };
  __device__ Place place(int first) const {
    Place place;
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) place.row[i] = matrix.row(first + Tile::row(i));
    return place;
  }
  __device__ __forceinline__ void copy(const Place& place, int first_k, unsigned char* tile) const {
    const int k = first_k + Tile::k(0);
    const int tap = k / matrix.sizes.k;
    const bool exists = tap < matrix.sizes.taps();
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const bool inside = exists && place.row[i].image != nullptr;
      const f16* source = inside ? matrix.at(place.row[i], tap, k - tap * matrix.sizes.k) : nullptr;
      cp_async_16(tile + Tile::offset(Tile::row(i), Tile::k(0)), source != nullptr ? source : matrix.dy,
                  source != nullptr);
    }
  }
};

/// Filters [K, R S, C] as [C, R S K], C a multiple of 8.
template <int size>
struct FilterTiles {
  using Tile = TileAlongRows<size>;
  ConvolutionSizes sizes;
  const f16* w;

  struct Place {
    int channel;
  };
  __device__ Place place(int first) const { return {first + Tile::row(0)}; }
  __device__ __forceinline__ void copy(const Place& place, int first_k, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int k = first_k + Tile::k(i);
      const int tap = k / sizes.k;
      const int filter = k - tap * sizes.k;
      const bool inside = tap < sizes.taps() && place.channel < sizes.c;
      const f16* source =
          inside ? w + (static_cast<int64_t>(filter) * sizes.taps() + tap) * sizes.c + place.channel : w;
      cp_async_16(tile + Tile::offset(Tile::row(0), Tile::k(i)), source, inside);
    }
  }
};

/// dy [output pixels, K] as [K, output pixels], K a multiple of 8.
template <int size>
struct OutputTiles {
  using Tile = TileAlongRows<size>;
  const f16* dy;
  int filters;
  int pixels;

  struct Place {
    int filter;
  };
  __device__ Place place(int first) const { return {first + Tile::row(0)}; }
  __device__ __forceinline__ void copy(const Place& place, int first_k, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int pixel = first_k + Tile::k(i);
      const bool inside = pixel < pixels && place.filter < filters;
      const f16* source = inside ? dy + static_cast<int64_t>(pixel) * filters + place.filter : dy;
      cp_async_16(tile + Tile::offset(Tile::row(0), Tile::k(i)), source, inside);
    }
  }
};

/// x [N, H, W, C] as [R S C, output pixels]. `aligned`: C is a multiple of 8. If not, fp16 values
/// are loaded one by one; this serves the three channels of the first convolution.
template <int size, bool aligned>
struct WindowTiles {
  using Tile = TileAlongRows<size>;
  Windows<f16> windows;

  /// Coordinates of the first of eight neighbours in a window.
  struct Place {
    int row;      ///< of the window
    int along;    ///< element of that row of S C
    bool exists;  ///< false: past the window's end
  };
  __device__ Place place(int first) const {
    const int k = first + Tile::row(0);
    const int row_length = windows.sizes.size * windows.sizes.c;
    return {k / row_length, k % row_length, k < windows.sizes.length()};
  }
  __device__ __forceinline__ void copy(const Place& place, int first_k, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const Windows<f16>::Row window = windows.row(first_k + Tile::k(i));
      unsigned char* to = tile + Tile::offset(Tile::row(0), Tile::k(i));
      if constexpr (aligned)
        copy_vector(window, place, to);
      else
        copy_elements(window, place, to);
    }
  }

 private:
  /// Address of an element: a row of the window is a run of neighbours in a row of the image. Null
  /// outside the image.
  __device__ const f16* at(const Windows<f16>::Row& window, int row, int along) const {
    const int h = window.h + row;
    const int element = window.w * windows.sizes.c + along;
    const bool inside = window.image != nullptr && h >= 0 && h < windows.sizes.h && element >= 0 &&
                        element < windows.sizes.w * windows.sizes.c;
    return inside ? window.image + static_cast<int64_t>(h) * windows.sizes.w * windows.sizes.c + element : nullptr;
  }
  __device__ void copy_vector(const Windows<f16>::Row& window, const Place& place, unsigned char* to) const {
    const f16* source = place.exists ? at(window, place.row, place.along) : nullptr;
    cp_async_16(to, source != nullptr ? source : windows.x, source != nullptr);
  }
  __device__ void copy_elements(const Windows<f16>::Row& window, const Place& place, unsigned char* to) const {
    const int row_length = windows.sizes.size * windows.sizes.c;
    int row = place.row;
    int along = place.along;
    uint32_t pairs[4] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const f16* source = row < windows.sizes.size ? at(window, row, along) : nullptr;
      if (source != nullptr) pairs[e / 2] |= static_cast<uint32_t>(source->bits) << e % 2 * 16;
      if (++along == row_length) {
        along = 0;
        ++row;
      }
    }
    *reinterpret_cast<uint4*>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
};

}  // namespace nibblenet
