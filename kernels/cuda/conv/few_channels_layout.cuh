#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"

// How few_channels.cuh cuts its work, and where its operands lie in shared memory.

namespace nibblenet {

inline constexpr int most_pairs = 256;      ///< of a filter
inline constexpr int pairs_of_step = 8;     ///< one m16n8k16
inline constexpr int fragment_bytes = 512;  ///< of 16 filters in a step

/// Where pair `word` of kernel row r stands in the order of k: slot[r * words + word].
struct PairSlots {
  uint8_t slot[most_pairs];
};

/// The output pixels of a block: `rows` x `columns` of an image, in tiles of eight neighbours, and their input. A block
/// walks down `walk` bands of an image, and then begins anew elsewhere.
struct OutputBands {
  ConvolutionSizes sizes = {};
  int filters = 0;  ///< of a block: 16 a fragment
  int rows = 0, columns = 0;
  int walk = 1;
  int walk_rows = 0;         ///< from the first row of a walk to that of the next one
  int down = 0, across = 0;  ///< walks of an image
  int tiles_across = 0;      ///< of a band's row
  int height = 0;            ///< rows of input
  int pieces = 0;            ///< of 16 bytes that a row of input takes
  int pitch = 0;             ///< words from one row to the next one
  int words = 0;             ///< of a run
  int steps = 0;             ///< along k
  int pooled_p = 0;          ///< rows of y where results are pooled; 0: they are not
  int pooled_q = 0;          ///< and columns
  bool aligned = false;      ///< rows of x begin at 16 bytes, windows at words of them

  __host__ __device__ int walks() const { return sizes.n * down * across; }
  __host__ __device__ int tiles() const { return rows * tiles_across; }
  __host__ __device__ int run() const { return sizes.size * sizes.c; }  ///< halves
  __host__ __device__ int pairs() const { return sizes.size * words; }
  __host__ __device__ int step_bytes() const { return filters / 16 * fragment_bytes; }

  /// A walk, and the band that it has come to.
  struct Place {
    int walk, band;
  };
  __device__ Place next(Place place) const {
    if (place.band + 1 < walk) return {place.walk, place.band + 1};
    return {place.walk + static_cast<int>(gridDim.x), 0};
  }
  struct Band {
    int image, row, column;  ///< of its first output pixel
  };
  __device__ Band band(Place place) const {
    const int strip = place.walk / across;
    const int image = strip / down;
    return {image, (strip - image * down) * walk_rows + place.band * rows, (place.walk - strip * across) * columns};
  }
  /// Element of an image's row that a band's windows begin with; negative in the padding.
  __device__ int first_element(const Band& band) const {
    return (band.column * sizes.stride - sizes.padding) * sizes.c;
  }
  /// The element before it that a copy begins with.
  __device__ int first_copied(const Band& band) const { return first_element(band) & (aligned ? ~7 : ~0); }
};

struct FirstConvolution {
  OutputBands bands;
  const f16* x;
  BiasResult<f16*> result;
  float factor;  ///< of weights
  PairSlots order;
  bool whole_pieces;  ///< 8 filters of y are 16 aligned bytes
};

/// Dynamic shared memory of a block.
struct FirstShared {
  struct Pairs {
    int low, high;  ///< bytes from a window's beginning
  };
  struct Finish {
    float step, bias;
  };
  unsigned char* memory;
  const OutputBands& bands;

  __host__ __device__ static int input_at(const OutputBands& b) { return b.steps * b.step_bytes(); }
  __host__ __device__ static int pairs_at(const OutputBands& b) { return input_at(b) + b.height * b.pitch * 4; }
  __host__ __device__ static int finish_at(const OutputBands& b) {
    return pairs_at(b) + b.steps * 4 * static_cast<int>(sizeof(Pairs));
  }
  /// Needed until the filters are there; results to be pooled take the same memory afterwards.
  __host__ __device__ static int places_at(const OutputBands& b) {
    return finish_at(b) + b.filters * static_cast<int>(sizeof(Finish));
  }
  __host__ __device__ static int result_row(const OutputBands& b) { return b.pooled_q * b.filters * 2; }
  __host__ __device__ static int bytes(const OutputBands& b) {
    const int places = 2 * 2 * most_pairs, results = (b.rows + 1) * result_row(b);
    return places_at(b) + (places > results ? places : results);
  }

  __device__ unsigned char* filters() const { return memory; }
  __device__ unsigned char* input() const { return memory + input_at(bands); }
  /// [steps][4]: what lanes t of a step read.
  __device__ Pairs* pairs() const { return reinterpret_cast<Pairs*>(memory + pairs_at(bands)); }
  __device__ Finish* finish() const { return reinterpret_cast<Finish*>(memory + finish_at(bands)); }
  /// By weight, in device order: where it lies in row 0 of the filters.
  __device__ uint16_t* places() const { return reinterpret_cast<uint16_t*>(memory + places_at(bands)); }
  /// [row of a band][pooled column][filter]: maxima along rows. Behind them what a band's last two rows leave to the
  /// next one's first.
  __device__ unsigned char* results() const { return memory + places_at(bands); }
};

/// sums[tile][u][2 h + e]: filter 2 U g + 2 u + h of pixel 2 t + e of a tile.
template <int tiles, int fragments>
struct FirstSums {
  float d[tiles][fragments][4];
};

}  // namespace nibblenet
