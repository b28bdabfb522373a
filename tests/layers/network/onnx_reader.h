#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/half.h"

namespace nibblenet::testing {

/// A field of a protobuf message: an integer, or bytes.
struct ProtobufField {
  uint64_t number = 0;
  uint64_t value = 0;
  std::string_view bytes;
};

inline uint64_t read_varint(std::string_view& message) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<uint8_t>(message.at(0));
    message.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
  throw std::runtime_error("a varint of more than 10 bytes");
}

/// The fields of a message, in order. Throws for anything else.
inline std::vector<ProtobufField> protobuf_fields(std::string_view message) {
  std::vector<ProtobufField> fields;
  while (!message.empty()) {
    const uint64_t tag = read_varint(message);
    ProtobufField field{.number = tag >> 3, .value = read_varint(message), .bytes = {}};
    if ((tag & 7) == 2) {
      if (field.value > message.size()) throw std::runtime_error("a field that is cut off");
      field.bytes = message.substr(0, field.value);
      message.remove_prefix(field.value);
    } else if ((tag & 7) != 0) {
      throw std::runtime_error("a field of a kind that ONNX's schema does not have here");
    }
    fields.push_back(field);
  }
  return fields;
}

/// A tensor's sizes and its elements as float32, which holds all numbers of these tests.
struct OnnxTensor {
  int64_t type = 0;
  std::vector<int64_t> sizes;
  std::vector<float> values;
};

inline int64_t onnx_elements(const std::vector<int64_t>& sizes) {
  int64_t elements = 1;
  for (const int64_t size : sizes) elements *= size;
  return elements;
}

template <class T, class Convert>
void take_values(OnnxTensor& tensor, std::string_view raw, Convert convert) {
  if (raw.size() != tensor.values.size() * sizeof(T)) throw std::runtime_error("a tensor of another size");
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    T value;
    std::memcpy(&value, raw.data() + i * sizeof(T), sizeof(T));
    tensor.values[i] = convert(value);
  }
}

/// Decodes raw_data by ONNX's element types.
inline void decode(OnnxTensor& tensor, std::string_view raw) {
  tensor.values.resize(static_cast<size_t>(onnx_elements(tensor.sizes)));
  const auto number = [](auto value) { return static_cast<float>(value); };
  switch (tensor.type) {
    case 1:
      return take_values<float>(tensor, raw, number);
    case 2:
      return take_values<uint8_t>(tensor, raw, number);
    case 3:
      return take_values<int8_t>(tensor, raw, number);
    case 6:
      return take_values<int32_t>(tensor, raw, number);
    case 7:
      return take_values<int64_t>(tensor, raw, number);
    case 10:
      return take_values<uint16_t>(tensor, raw, f16_to_f32);
    case 21:
    case 22:
      if (raw.size() != (tensor.values.size() + 1) / 2) throw std::runtime_error("a tensor of another size");
      for (size_t i = 0; i < tensor.values.size(); ++i) {
        const int nibble = static_cast<uint8_t>(raw[i / 2]) >> (i % 2 * 4) & 15;
        tensor.values[i] = static_cast<float>(tensor.type == 22 && nibble > 7 ? nibble - 16 : nibble);
      }
      return;
    default:
      throw std::runtime_error("a type of elements that no test expects");
  }
}

/// A node of a graph.
struct OnnxNode {
  std::string op;
  std::vector<std::string> inputs;
  std::string output;
  std::map<std::string, std::vector<int64_t>> attributes;
};

/// An ONNX file as these tests need it.
struct OnnxModel {
  int64_t ir_version = 0;
  int64_t opset = 0;
  std::vector<OnnxNode> nodes;
  std::map<std::string, OnnxTensor> tensors;
  std::map<std::string, std::vector<int64_t>> ends;  ///< sizes of inputs and outputs; the batch is -1
  std::map<std::string, std::string> metadata;
};

inline OnnxNode read_node(std::string_view message) {
  OnnxNode node;
  for (const ProtobufField& field : protobuf_fields(message)) {
    if (field.number == 1) node.inputs.emplace_back(field.bytes);
    if (field.number == 2) node.output = field.bytes;
    if (field.number == 4) node.op = field.bytes;
    if (field.number != 5) continue;
    std::string name;
    std::vector<int64_t> values;
    for (const ProtobufField& part : protobuf_fields(field.bytes)) {
      if (part.number == 1) name = part.bytes;
      if (part.number == 3 || part.number == 8) values.push_back(static_cast<int64_t>(part.value));
    }
    node.attributes[name] = values;
  }
  return node;
}

inline void read_tensor(OnnxModel& model, std::string_view message) {
  OnnxTensor tensor;
  std::string name;
  std::string_view raw;
  for (const ProtobufField& field : protobuf_fields(message)) {
    if (field.number == 1) tensor.sizes.push_back(static_cast<int64_t>(field.value));
    if (field.number == 2) tensor.type = static_cast<int64_t>(field.value);
    if (field.number == 8) name = field.bytes;
    if (field.number == 9) raw = field.bytes;
  }
  decode(tensor, raw);
  if (!model.tensors.emplace(name, std::move(tensor)).second) throw std::runtime_error("two tensors named " + name);
}

/// ValueInfoProto > TypeProto > TypeProto.Tensor > TensorShapeProto > Dimension.
inline void read_end(OnnxModel& model, std::string_view message) {
  std::string name;
  std::vector<int64_t> sizes;
  for (const ProtobufField& field : protobuf_fields(message)) {
    if (field.number == 1) name = field.bytes;
    if (field.number != 2) continue;
    for (const ProtobufField& tensor : protobuf_fields(protobuf_fields(field.bytes).at(0).bytes)) {
      if (tensor.number != 2) continue;
      for (const ProtobufField& dimension : protobuf_fields(tensor.bytes)) {
        const ProtobufField size = protobuf_fields(dimension.bytes).at(0);
        sizes.push_back(size.number == 1 ? static_cast<int64_t>(size.value) : -1);
      }
    }
  }
  model.ends[name] = sizes;
}

inline OnnxModel read_onnx(std::string_view file) {
  OnnxModel model;
  for (const ProtobufField& field : protobuf_fields(file)) {
    if (field.number == 1) model.ir_version = static_cast<int64_t>(field.value);
    if (field.number == 8) model.opset = static_cast<int64_t>(protobuf_fields(field.bytes).at(1).value);
    if (field.number == 14) {
      const auto entry = protobuf_fields(field.bytes);
      model.metadata[std::string(entry.at(0).bytes)] = entry.at(1).bytes;
    }
    if (field.number != 7) continue;
    for (const ProtobufField& part : protobuf_fields(field.bytes)) {
      if (part.number == 1) model.nodes.push_back(read_node(part.bytes));
      if (part.number == 5) read_tensor(model, part.bytes);
      if (part.number == 11 || part.number == 12) read_end(model, part.bytes);
    }
  }
  return model;
}

}  // namespace nibblenet::testing
