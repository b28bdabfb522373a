#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// The size of one tensor, or of several added up, by the usual formula, in bytes. The formula
/// omits zero points, block ids, codebooks and padding, so they appear as its difference from the
/// measured size. Fractions of a byte add up over tensors.
struct EstimatedSize {
  double codes = 0;   ///< weights x bits / 8
  double scales = 0;  ///< groups x 32 bits, as the original notebooks count; f16 scales count 16
  double total() const { return codes + scales; }
};

/// The bytes that weights occupy in memory, by purpose.
struct ResidentSize {
  int64_t codes = 0;  ///< codes without padding, rounded up to a byte per channel
  int64_t scales = 0;
  int64_t zero_points = 0;
  int64_t codebooks = 0;
  int64_t block_ids = 0;
  int64_t padding = 0;  ///< to the 16-byte boundary of each channel, of codes and block ids; of trellis sequences
  int64_t biases = 0;
  int64_t weights = 0;  ///< float32 weights of tensors that are not packed
  int64_t total() const { return codes + scales + zero_points + codebooks + block_ids + padding + biases + weights; }
};

/// One row of the ledger. A float tensor has bits 32, no groups, and its bytes under `weights`.
struct SizeRow {
  std::string name;    ///< the layer: "features.0"
  std::string scheme;  ///< "linear:4:channel" or "float32"
  int64_t weights = 0;
  int64_t groups = 0;
  EstimatedSize estimated;
  ResidentSize resident;
  int64_t file = 0;                ///< bytes of this layer's tensors in the file
  double bits_per_weight() const;  ///< (codes + scales + zero points + block ids + codebooks) * 8 / weights; float: 32
};

/// The sum of some rows, named `name`. The scheme is the one that all rows share, else "mixed".
SizeRow sum(const std::vector<SizeRow>& rows, std::string name);

/// The size by the formula, from scheme and shape alone.
EstimatedSize estimated_size(const Scheme& scheme, const Shape& shape);
EstimatedSize estimated_size(const PackedTensor& packed);
/// The bytes of the tensor's own vectors; `biases` and `weights` are 0.
ResidentSize resident_size(const PackedTensor& packed);

}  // namespace nibblenet
