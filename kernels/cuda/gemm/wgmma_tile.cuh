#pragma once

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/im2col.cuh"

// Shared-memory tiles of the wgmma products (gemm/wgmma.cuh): a ring of both operands, 64 elements
// of k deep, in the layouts of wgmma_async. In memory, an operand's neighbours share either a row
// of the product or an index k. Copies take 16 bytes at a time, and the tiles keep that order.

namespace nibblenet {

inline constexpr int wgmma_depth = 64;     ///< of k, between two barriers
inline constexpr int wgmma_stages = 3;     ///< of the ring: one is multiplied, the others are in flight
inline constexpr int wgmma_threads = 256;  ///< two warpgroups below each other
inline constexpr int wgmma_rows = 128;     ///< of a block's sums

/// Copies of a tile. A line is 128 bytes that share a row, or a k. A thread copies one 16-byte
/// vector of every 32nd line.
struct TileCopies {
  static constexpr int lines = wgmma_threads / 8;  ///< at once
  static __device__ int line(int copy) { return static_cast<int>(threadIdx.x) / 8 + copy * lines; }
  static __device__ int vector() { return static_cast<int>(threadIdx.x) % 8; }
  /// Offset of the vector. A thread's lines differ by multiples of eight, so their swizzle is the
  /// same.
  static __device__ int offset(int copy) { return line(copy) * 128 + ((vector() ^ line(0) % 8) << 4); }
};

/// Tile whose neighbours share a row: [rows][64 of k] fp16 values.
template <int size>
struct WgmmaTileAlongK {
  static constexpr bool along_k = true;
  static constexpr int rows = size;
  static constexpr int bytes = rows * 128;
  static constexpr int copies = rows / TileCopies::lines;
  static_assert(rows % TileCopies::lines == 0);
};

/// Tile whose neighbours share k: [blocks of 64 rows][64 of k][64 rows] fp16 values.
template <int size>
struct WgmmaTileAlongRows {
  static constexpr bool along_k = false;
  static constexpr int rows = size;
  static constexpr int blocks = ceil_div(rows, 64);
  static constexpr int block_bytes = 8192;
  static constexpr int bytes = blocks * block_bytes;
  static constexpr int copies = wgmma_depth / TileCopies::lines;  ///< of each block

  static __device__ int offset(int block, int copy) { return block * block_bytes + TileCopies::offset(copy); }
  /// First row of the vector that a thread copies.
  static __device__ int row(int block) { return 64 * block + TileCopies::vector() * 8; }
};

/// Position of a walk along k: 64 channels at one tap. Taps change first, so that neighbouring
/// k-tiles read the same pixels while a cache holds them.
struct TapWalk {
  int slice, r, s;
  __device__ TapWalk(int k_tile, int size) {
    slice = k_tile / (size * size);
    const int tap = k_tile - slice * size * size;
    r = tap / size;
    s = tap - r * size;
  }
  __device__ void advance(int size) {
    if (++s < size) return;
    s = 0;
    if (++r < size) return;
    r = 0;
    ++slice;
  }
};

// Operands. place() returns a thread's coordinates for its copies, from k-tile `begin` on. copy()
// starts the thread's copies of the next tile, with zeros outside the operand.

/// Pixels and their neighbourhoods as [pixels, C taps]: windows of x for the forward product,
/// output gradients for the gradient of x, whose taps run backwards. C is a multiple of 8.
struct PixelTiles {
  using Tile = WgmmaTileAlongK<wgmma_rows>;
  const f16* data;    ///< [N, H, W, C]
  int n, h, w, c;     ///< of data
  int p, q;           ///< pixels of an image, as the product has them
  int size;           ///< of the filter
  int stride, first;  ///< pixel i meets rows first + stride i + direction r of data
  int direction;      ///< 1 or -1

  static PixelTiles windows(const f16* x, const ConvolutionSizes& s) {
    return {x, s.n, s.h, s.w, s.c, s.p, s.q, s.size, s.stride, -s.padding, 1};
  }
  /// The operand of the data gradient. Requires stride 1.
  static PixelTiles contributions(const f16* dy, const ConvolutionSizes& s) {
    return {dy, s.n, s.p, s.q, s.k, s.h, s.w, s.size, 1, s.padding, -1};
  }
  int pixels() const { return n * p * q; }
  int k_tiles() const { return ceil_div(c, wgmma_depth) * size * size; }

  struct Place {
    TapWalk walk;
    int h[Tile::copies], w[Tile::copies];  ///< of the first tap; far outside where there is no pixel
    int at[Tile::copies];                  ///< that place, in eights of data
  };
  __device__ Place place(int first_pixel, int begin) const {
    Place place{TapWalk(begin, size), {}, {}, {}};
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int pixel = first_pixel + TileCopies::line(i);
      const int across = pixel / q;
      const int image = across / p;
      const bool exists = image < n;
      place.h[i] = exists ? (across - image * p) * stride + first : -(1 << 24);
      place.w[i] = (pixel - across * q) * stride + first;
      place.at[i] =
          (((exists ? image : 0) * h + (exists ? place.h[i] : 0)) * w + place.w[i]) * (c / 8) + TileCopies::vector();
    }
    return place;
  }
  __device__ __forceinline__ void copy(Place& place, unsigned char* tile) const {
    const int r = direction * place.walk.r;
    const int s = direction * place.walk.s;
    const int channel = place.walk.slice * wgmma_depth;
    const int offset = (r * w + s) * (c / 8) + channel / 8;
    const bool in_channels = channel + TileCopies::vector() * 8 < c;
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const bool inside = in_channels && static_cast<unsigned>(place.h[i] + r) < static_cast<unsigned>(h) &&
                          static_cast<unsigned>(place.w[i] + s) < static_cast<unsigned>(w);
      cp_async_16_cached(tile + TileCopies::offset(i), data + int64_t{8} * (inside ? place.at[i] + offset : 0), inside);
    }
    place.walk.advance(size);
  }
};

/// Filters [K, R S, C] as [K, C taps], C a multiple of 8.
template <int size>
struct FilterRowTiles {
  using Tile = WgmmaTileAlongK<size>;
  const f16* w;
  int filters, c, taps, filter_size;

  struct Place {
    TapWalk walk;
    const f16* at;
    int existing;  ///< copies of filters that exist
  };
  __device__ Place place(int first_filter, int begin) const {
    const int filter = first_filter + TileCopies::line(0);
    int existing = 0;
    while (existing < Tile::copies && filter + existing * TileCopies::lines < filters) ++existing;
    return {TapWalk(begin, filter_size), w + static_cast<int64_t>(filter) * taps * c + TileCopies::vector() * 8,
            existing};
  }
  __device__ __forceinline__ void copy(Place& place, unsigned char* tile) const {
    const int channel = place.walk.slice * wgmma_depth;
    const f16* at = place.at + (place.walk.r * filter_size + place.walk.s) * c + channel;
    const int exists = channel + TileCopies::vector() * 8 < c ? place.existing : 0;
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i)
      cp_async_16_cached(tile + TileCopies::offset(i),
                         i < exists ? at + static_cast<int64_t>(i) * TileCopies::lines * taps * c : w, i < exists);
    place.walk.advance(filter_size);
  }
};

/// Filters [K, R S, C] as [C, K taps], C a multiple of 8.
template <int size>
struct FilterColumnTiles {
  using Tile = WgmmaTileAlongRows<size>;
  const f16* w;
  int filters, c, taps, filter_size;

  struct Place {
    TapWalk walk;
    int channel;
  };
  __device__ Place place(int first_channel, int begin) const {
    return {TapWalk(begin, filter_size), first_channel + Tile::row(0)};
  }
  __device__ __forceinline__ void copy(Place& place, unsigned char* tile) const {
    const int tap = place.walk.r * filter_size + place.walk.s;
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int filter = place.walk.slice * wgmma_depth + TileCopies::line(i);
      const f16* at = w + (static_cast<int64_t>(filter) * taps + tap) * c + place.channel;
#pragma unroll
      for (int block = 0; block < Tile::blocks; ++block) {
        const bool inside = filter < filters && place.channel + 64 * block < c && Tile::row(block) < size;
        cp_async_16_cached(tile + Tile::offset(block, i), inside ? at + 64 * block : w, inside);
      }
    }
    place.walk.advance(filter_size);
  }
};

/// dy [output pixels, K] as [K, output pixels], K a multiple of 8.
struct GradientColumnTiles {
  using Tile = WgmmaTileAlongRows<wgmma_rows>;
  const f16* dy;
  int filters, pixels;

  struct Place {
    int filter, pixel;
  };
  __device__ Place place(int first_filter, int begin) const {
    return {first_filter + Tile::row(0), begin * wgmma_depth + TileCopies::line(0)};
  }
  __device__ __forceinline__ void copy(Place& place, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int pixel = place.pixel + i * TileCopies::lines;
      const f16* at = dy + static_cast<int64_t>(pixel) * filters + place.filter;
#pragma unroll
      for (int block = 0; block < Tile::blocks; ++block) {
        const bool inside = pixel < pixels && place.filter + 64 * block < filters;
        cp_async_16_cached(tile + Tile::offset(block, i), inside ? at + 64 * block : dy, inside);
      }
    }
    place.pixel += wgmma_depth;
  }
};

/// x [N, H, W, C] as [R S C, output pixels], C a multiple of 8.
struct WindowColumnTiles {
  using Tile = WgmmaTileAlongRows<wgmma_rows>;
  const f16* x;
  ConvolutionSizes sizes;
  int images_a_step, rows_a_step, columns_a_step;  ///< 64 pixels further on

  static WindowColumnTiles of(const f16* x, const ConvolutionSizes& s) {
    const int rows = wgmma_depth / s.q;
    return {x, s, rows / s.p, rows % s.p, wgmma_depth % s.q};
  }

  struct Pixel {
    int n, p, q;
  };
  struct Place {
    Pixel pixel[Tile::copies];
    int r[Tile::blocks], s[Tile::blocks];  ///< the tap of the thread's columns; r = R: there are no such columns
    int offset[Tile::blocks];              ///< of that tap and channel from a window's first element
  };
  __device__ Place place(int first_column, int begin) const {
    Place place;
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      const int pixel = begin * wgmma_depth + TileCopies::line(i);
      const int across = pixel / sizes.q;
      place.pixel[i] = {across / sizes.p, across % sizes.p, pixel - across * sizes.q};
    }
#pragma unroll
    for (int block = 0; block < Tile::blocks; ++block) {
      const int column = first_column + Tile::row(block);
      const int tap = column / sizes.c;
      place.r[block] = tap / sizes.size;
      place.s[block] = tap - place.r[block] * sizes.size;
      place.offset[block] = (place.r[block] * sizes.w + place.s[block]) * sizes.c + column - tap * sizes.c;
    }
    return place;
  }
  __device__ __forceinline__ void copy(Place& place, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Tile::copies; ++i) {
      Pixel& pixel = place.pixel[i];
      const int h = pixel.p * sizes.stride - sizes.padding;
      const int w = pixel.q * sizes.stride - sizes.padding;
      const f16* at = x + ((static_cast<int64_t>(pixel.n) * sizes.h + h) * sizes.w + w) * sizes.c;
#pragma unroll
      for (int block = 0; block < Tile::blocks; ++block) {
        const bool inside = pixel.n < sizes.n && place.r[block] < sizes.size &&
                            static_cast<unsigned>(h + place.r[block]) < static_cast<unsigned>(sizes.h) &&
                            static_cast<unsigned>(w + place.s[block]) < static_cast<unsigned>(sizes.w);
        cp_async_16_cached(tile + Tile::offset(block, i), inside ? at + place.offset[block] : x, inside);
      }
      advance(pixel);
    }
  }

 private:
  __device__ void advance(Pixel& pixel) const {
    pixel.q += columns_a_step;
    pixel.p += rows_a_step;
    pixel.n += images_a_step;
    if (pixel.q >= sizes.q) {
      pixel.q -= sizes.q;
      ++pixel.p;
    }
    if (pixel.p >= sizes.p) {
      pixel.p -= sizes.p;
      ++pixel.n;
    }
  }
};

}  // namespace nibblenet
