#include "engine/io/onnx_graph.h"

#include <fstream>
#include <limits>

#include "engine/core/error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"

namespace nibblenet {
namespace {

constexpr int64_t ir_version = 10;  // the one that belongs to opset 21
constexpr std::string_view onnx_producer = "nibblenet";
constexpr int64_t largest_onnx = std::numeric_limits<int32_t>::max();  // protobuf's limit

/// A protobuf message in its wire format: each field is a varint of its number and kind, then its
/// content. Integers are varints too; texts, bytes and messages have their length in front.
class ProtobufMessage {
 public:
  ProtobufMessage& integer(int field, int64_t value) {
    varint(static_cast<uint64_t>(field) << 3);
    varint(static_cast<uint64_t>(value));
    return *this;
  }
  ProtobufMessage& text(int field, std::string_view value) {
    begin_bytes(field, value.size());
    text_ += value;
    return *this;
  }
  ProtobufMessage& message(int field, const ProtobufMessage& value) { return text(field, value.text_); }
  /// The beginning of a field of `size` bytes, which the caller writes behind this message.
  ProtobufMessage& begin_bytes(int field, uint64_t size) {
    varint(static_cast<uint64_t>(field) << 3 | 2);
    varint(size);
    return *this;
  }

  const std::string& bytes() const { return text_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
    text_ += static_cast<char>(value);
  }

  std::string text_;
};

// The numbers of fields below are those of ONNX's schema, onnx.proto.

ProtobufMessage attribute_message(const OnnxAttribute& attribute) {
  constexpr int kind_int = 2, kind_ints = 7;
  ProtobufMessage message;
  message.text(1, attribute.name);
  for (const int64_t value : attribute.values) message.integer(attribute.is_list ? 8 : 3, value);
  return message.integer(20, attribute.is_list ? kind_ints : kind_int);
}

/// ValueInfoProto: a tensor [N, sizes…] of float32.
ProtobufMessage value_message(const OnnxValue& value) {
  ProtobufMessage shape;
  shape.message(1, ProtobufMessage().text(2, "N"));
  for (const int64_t size : value.sizes) shape.message(1, ProtobufMessage().integer(1, size));
  ProtobufMessage tensor;
  tensor.integer(1, static_cast<int64_t>(OnnxType::float32)).message(2, shape);
  ProtobufMessage message;
  message.text(1, value.name).message(2, ProtobufMessage().message(1, tensor));
  if (!value.text.empty()) message.text(3, value.text);
  return message;
}

/// The beginning of ModelProto.
ProtobufMessage model_head() {
  ProtobufMessage model;
  model.integer(1, ir_version).text(2, onnx_producer);
  return model;
}

std::span<const uint8_t> text_bytes(const std::string& text) { return bytes_of(std::span<const char>(text)); }

}  // namespace

std::string OnnxGraph::add_node(std::string_view op, const std::vector<std::string>& inputs, std::string output,
                                const std::vector<OnnxAttribute>& attributes) {
  ProtobufMessage node;
  for (const std::string& input : inputs) node.text(1, input);
  node.text(2, output).text(3, output + "/" + std::string(op)).text(4, op);
  for (const OnnxAttribute& attribute : attributes) node.message(5, attribute_message(attribute));
  nodes_ += ProtobufMessage().message(1, node).bytes();
  return output;
}

std::string OnnxGraph::add_view(std::string name, OnnxType type, const std::vector<int64_t>& sizes,
                                std::span<const uint8_t> bytes) {
  ProtobufMessage head;
  for (const int64_t size : sizes) head.integer(1, size);
  head.integer(2, static_cast<int64_t>(type)).text(8, name).begin_bytes(9, bytes.size());
  constants_.push_back({.head = head.bytes(), .owned = {}, .bytes = bytes});
  constant_bytes_ += static_cast<int64_t>(bytes.size());
  return name;
}

std::string OnnxGraph::add_constant(std::string name, OnnxType type, const std::vector<int64_t>& sizes,
                                    std::vector<uint8_t> bytes) {
  name = add_view(std::move(name), type, sizes, bytes);
  constants_.back().owned = std::move(bytes);  // a moved vector keeps its memory
  return name;
}

void OnnxGraph::write(const std::filesystem::path& path, const OnnxValue& input, const OnnxValue& output,
                      const std::map<std::string, std::string>& metadata) const {
  ProtobufMessage ends;
  ends.text(2, onnx_producer).message(11, value_message(input)).message(12, value_message(output));
  std::vector<std::string> heads;  // of the constants, with the number of their field
  uint64_t graph_bytes = nodes_.size() + ends.bytes().size();
  for (const Constant& constant : constants_) {
    heads.push_back(ProtobufMessage().begin_bytes(5, constant.head.size() + constant.bytes.size()).bytes() +
                    constant.head);
    graph_bytes += heads.back().size() + constant.bytes.size();
  }
  ProtobufMessage model = model_head();
  model.message(8, ProtobufMessage().text(1, "").integer(2, onnx_opset));
  for (const auto& [key, value] : metadata) model.message(14, ProtobufMessage().text(1, key).text(2, value));
  model.begin_bytes(7, graph_bytes);
  if (model.bytes().size() + graph_bytes > static_cast<uint64_t>(largest_onnx))
    fail<FormatError>("cannot write {}: {} bytes are more than an ONNX file holds, {}; pack the model to fewer bits",
                      path.string(), model.bytes().size() + graph_bytes, largest_onnx);

  AtomicFile file(path);
  for (const std::string* text : {&model.bytes(), &nodes_, &ends.bytes()}) file.write(text_bytes(*text));
  for (size_t i = 0; i < constants_.size(); ++i) {
    file.write(text_bytes(heads[i]));
    file.write(constants_[i].bytes);
  }
  file.commit();
}

bool is_our_onnx(const std::filesystem::path& path) {
  const std::string expected = model_head().bytes();
  std::string begin(expected.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  return file.read(begin.data(), static_cast<std::streamsize>(begin.size())) && begin == expected;
}

}  // namespace nibblenet
