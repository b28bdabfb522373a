#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibblenet {

/// The version of ONNX's operators that graphs use: the first with 4-bit integers and block scales.
inline constexpr int64_t onnx_opset = 21;

/// Element types of ONNX, by the numbers of its schema (TensorProto.DataType).
enum class OnnxType : uint8_t {
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  int32 = 6,
  int64 = 7,
  float16 = 10,
  uint4 = 21,  ///< two elements a byte, the first one in the low bits
  int4 = 22    ///< the same
};

/// An integer, or a list of them, by which an operator is told how to work.
struct OnnxAttribute {
  std::string_view name;
  std::vector<int64_t> values;
  bool is_list = false;
};

/// An input or output of a graph in float32. Its first dimension is the batch, of any size.
struct OnnxValue {
  std::string name;
  std::vector<int64_t> sizes;  ///< without the batch
  std::string text;            ///< what it holds, for readers
};

/// An ONNX model under construction: nodes in the order of their execution, and constant tensors
/// (initialisers). Writes the format's protobuf messages itself: https://onnx.ai, onnx.proto.
class OnnxGraph {
 public:
  /// Adds a node with one output. Returns the output's name.
  std::string add_node(std::string_view op, const std::vector<std::string>& inputs, std::string output,
                       const std::vector<OnnxAttribute>& attributes = {});
  /// Adds a constant tensor. Returns its name.
  std::string add_constant(std::string name, OnnxType type, const std::vector<int64_t>& sizes,
                           std::vector<uint8_t> bytes);
  /// The same for bytes that the caller keeps until write() has returned.
  std::string add_view(std::string name, OnnxType type, const std::vector<int64_t>& sizes,
                       std::span<const uint8_t> bytes);

  /// Bytes of all constants so far.
  int64_t constant_bytes() const { return constant_bytes_; }

  /// Writes the model atomically (AtomicFile). Throws IoError, or FormatError when it is larger
  /// than protobuf allows, 2 GiB.
  void write(const std::filesystem::path& path, const OnnxValue& input, const OnnxValue& output,
             const std::map<std::string, std::string>& metadata) const;

 private:
  /// A tensor's message is `head`, then its bytes.
  struct Constant {
    std::string head;
    std::vector<uint8_t> owned;
    std::span<const uint8_t> bytes;
  };

  std::string nodes_;
  std::vector<Constant> constants_;
  int64_t constant_bytes_ = 0;
};

/// Whether a file begins like those that OnnxGraph writes. False for one that cannot be read.
bool is_our_onnx(const std::filesystem::path& path);

}  // namespace nibblenet
