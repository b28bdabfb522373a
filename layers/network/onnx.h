#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "layers/network/network_spec.h"

namespace nibblenet {

/// How an ONNX file stores one layer, and its bytes beside those of our own format.
struct OnnxLayer {
  std::string name;       ///< "features.0"
  std::string scheme;     ///< "linear:4:channel" or "float32"
  std::string stored_as;  ///< the type of its codes or values in ONNX: "INT4"
  int64_t weights = 0;
  int64_t resident = 0;  ///< bytes of weight and bias in the ledger
  int64_t onnx = 0;      ///< bytes of all constants of this layer in the ONNX file
};

/// Writes a network for square images of `image_size` pixels as ONNX, with packed weights in packed
/// form: docs/formats.md shows the nodes. They compute the bits of decode_reference(). The input is
/// "images" [N, 3, size, size], normalised RGB, the output "logits" [N, classes], both float32.
/// Returns one entry a layer with parameters. Throws UsageError for magnitude-sorted schemes, which
/// ONNX cannot express, FormatError for more than 2 GiB, IoError when it cannot write.
std::vector<OnnxLayer> save_onnx(const std::filesystem::path& path, const StateDict& parameters, int image_size);

}  // namespace nibblenet
