#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "engine/io/safetensors.h"
#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// A weight or bias under its PyTorch name, in host memory: float32, or packed.
struct Parameter {
  std::string name;  ///< "features.0.weight"
  std::variant<Tensor<float>, PackedTensor> value;
  int64_t file_bytes = 0;  ///< of its tensors in the file that it was read from; else 0
  /// The part of file_bytes that is compressed codes and block ids; 0 when neither is compressed.
  int64_t compressed_bytes = 0;
  std::string stored_as = "float32";  ///< of a float one: PyTorch's name of the element type in the file

  bool packed() const { return std::holds_alternative<PackedTensor>(value); }
  bool is_weight() const { return shape().rank() > 1; }  ///< else a bias
  const Shape& shape() const;
  /// Throws FormatError for a packed one.
  Tensor<float>& values();
  const Tensor<float>& values() const;
  const PackedTensor& packed_values() const;
  /// A copy of the values as float32, packed or not.
  Tensor<float> dequantized() const;
};

/// The parameters of a network, in the order of the file, and the file's own metadata.
struct StateDict {
  std::vector<Parameter> parameters;
  std::map<std::string, std::string> metadata;
  int64_t file_bytes = 0;             ///< the size of the file; 0 when not read from a file
  int64_t header_bytes = 0;           ///< the part of file_bytes that is no parameter's data
  std::vector<std::string> warnings;  ///< faults that reading tolerated, one line each, naming the file
  std::vector<std::string> left_out;  ///< names of scalars that are no parameters: "total_ops", "n_averaged"
  std::vector<std::string> notes;     ///< one line for each choice of weights among several in the file

  /// The parameter of this name, or null.
  Parameter* find(std::string_view name);
  const Parameter* find(std::string_view name) const;
  /// Throws FormatError naming what is missing.
  Parameter& at(std::string_view name);
  const Parameter& at(std::string_view name) const;
  bool packed() const;           ///< at least one parameter is
  int64_t weight_count() const;  ///< numbers in all weights, biases aside
};

/// Metadata key of the input size a model was trained with, in pixels.
inline constexpr const char* image_size_key = "image_size";
/// Metadata key of the names of a model's classes: a JSON list in label order.
inline constexpr const char* class_names_key = "classes";

/// What a wrong checksum of a PyTorch file causes: a warning, as PyTorch itself ignores it, or an
/// error. Wrong checksums of safetensors files are errors.
enum class Checksums : uint8_t { warn, strict };

/// Options of load_state_dict().
struct Reading {
  Checksums checksums = Checksums::warn;
  std::string key;  ///< the dict, or prefix of names, of the weights to take; empty: those that are found first

  Reading() = default;
  Reading(Checksums checksums_wanted) : checksums(checksums_wanted) {}  // NOLINT: a Checksums is one
};

/// Reads a model, whose format the content tells, not the name: float safetensors (F32, F16, BF16
/// or F64), a packed model, compressed or not, or a state dict that PyTorch saved (PthFile).
/// Counters of batches (num_batches_tracked) and other scalars are left out. Every checksum that
/// the file has is verified. Throws IoError or FormatError.
StateDict load_state_dict(const std::filesystem::path& path, const Reading& reading = {});

/// Writes a state dict as safetensors: float parameters as F32 under their names, packed ones as
///   W.codes U8 [K, stride]   W.scales F32 or F16 [groups]   W.zero_points U8 [groups]
///   W.block_ids U8 [K, stride]   W.codebook F32 [2^bits]
/// with "scheme:W" and "shape:W" in the metadata. Atomic. Keeps the dict's metadata except for the
/// format's keys. With `compression`, codes and block ids that it makes smaller are written as
/// T.rans U8 [bytes] in place of T, with "compression:T" in the metadata: see encode_codes() and
/// docs/formats.md. `on_encoding` hears how many of the weights have been encoded, and may throw to
/// stop: nothing is written until all are.
enum class Compression : uint8_t { none, rans };
using OnEncoding = std::function<void(int64_t done, int64_t total, const std::string& weight)>;
void save_state_dict(const std::filesystem::path& path, const StateDict& dict,
                     Compression compression = Compression::none, const OnEncoding& on_encoding = {});

/// Writes a float dict like torch.save (see write_pth()), without the metadata, for which a .pth
/// has no place. Throws FormatError when a parameter is packed.
void save_pth(const std::filesystem::path& path, const StateDict& dict);

/// A copy of everything.
StateDict copy_of(const StateDict& dict);
/// A copy with every packed parameter dequantized to float32.
StateDict dequantized(const StateDict& dict);

}  // namespace nibblenet
