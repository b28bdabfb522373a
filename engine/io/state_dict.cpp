#include "engine/io/state_dict.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <deque>
#include <optional>
#include <set>

#include "engine/io/pth.h"
#include "engine/io/safetensors_header.h"
#include "engine/quant/entropy.h"

namespace nibblenet {
namespace {

constexpr std::string_view packed_format = "nibblenet-packed";
constexpr std::string_view plain_version = "1";       ///< still read, no longer written
constexpr std::string_view compressed_version = "2";  ///< still read, no longer written
constexpr std::string_view scheme_prefix = "scheme:";
constexpr std::string_view shape_prefix = "shape:";
constexpr std::string_view compression_prefix = "compression:";
constexpr std::string_view stream_suffix = ".rans";
constexpr std::string_view rans_method = "rans:";  ///< the checksum of the decoded bytes follows

constexpr std::array<std::string_view, 7> part_suffixes = {".codes",    ".scales",     ".zero_points",   ".block_ids",
                                                           ".codebook", ".codes.rans", ".block_ids.rans"};

Shape parse_shape(std::string_view text, const std::string& where) {
  std::vector<int64_t> sizes;
  const char* at = text.data();
  const char* end = text.data() + text.size();
  while (true) {
    int64_t size = 0;
    const auto [next, error] = std::from_chars(at, end, size);
    if (error != std::errc() || size < 1 || sizes.size() == Shape::max_rank || (next != end && *next != 'x'))
      fail<FormatError>("{}: {} is not the shape of a packed weight", where, in_quotes(text));
    sizes.push_back(size);
    if (next == end) break;
    at = next + 1;
  }
  return Shape(sizes);
}

/// The bytes of one part of a packed weight. Throws FormatError unless it has the format's type.
std::span<const uint8_t> part(const SafetensorsFile& file, const std::string& name, DType dtype) {
  const TensorEntry& entry = file.at(name);
  if (entry.dtype != dtype)
    fail<FormatError>("{}: {} is {}, expected {}", file.path().string(), name, to_string(entry.dtype),
                      to_string(dtype));
  return entry.bytes;
}

std::vector<uint8_t> bytes_or_none(const SafetensorsFile& file, const std::string& name) {
  if (file.find(name) == nullptr) return {};
  const auto bytes = part(file, name, DType::u8);
  return {bytes.begin(), bytes.end()};
}

/// Reads a tensor of codes, decompressed if the file holds its stream. `decoded_before` counts the
/// bytes that streams of this file were decoded to: max_decoded_bytes limits their sum.
std::vector<uint8_t> read_codes(const SafetensorsFile& file, const std::string& name, const CodeLayout& layout,
                                int64_t& decoded_before) {
  const std::string stream_name = name + std::string(stream_suffix);
  if (file.find(stream_name) == nullptr) return bytes_or_none(file, name);
  const std::string where = file.path().string() + ": " + stream_name;
  if (file.find(name) != nullptr) fail<FormatError>("{}: {} is there too; expected one of them", where, name);
  const auto method = file.metadata().find(std::string(compression_prefix) + name);
  if (method == file.metadata().end() || !method->second.starts_with(rans_method))
    fail<FormatError>("{}: compression {}, this program reads 'rans:<checksum>'", where,
                      method == file.metadata().end() ? "not named" : in_quotes(method->second));
  const auto stream = part(file, stream_name, DType::u8);
  std::vector<uint8_t> codes = decode_codes(stream, layout, where, max_decoded_bytes - decoded_before);
  decoded_before += static_cast<int64_t>(codes.size());
  if (checksum_of(codes) != std::string_view(method->second).substr(rans_method.size()))
    fail<FormatError>("{}: what it decodes to does not have the checksum {}: the file is damaged", where,
                      in_quotes(method->second.substr(rans_method.size())));
  return codes;
}

Parameter read_packed(const SafetensorsFile& file, const std::string& weight, std::string_view scheme_text,
                      int64_t& decoded_before) {
  const auto shape = file.metadata().find(std::string(shape_prefix) + weight);
  if (shape == file.metadata().end())
    fail<FormatError>("{}: no shape of packed weight {}", file.path().string(), weight);
  PackedTensor packed;
  try {
    packed.scheme = parse_scheme(scheme_text);
  } catch (const UsageError& error) {
    fail<FormatError>("{}: scheme of {}: {}", file.path().string(), weight, error.what());
  }
  packed.shape = parse_shape(shape->second, file.path().string() + ": " + weight);
  packed.codes = read_codes(file, weight + ".codes", code_layout(packed), decoded_before);
  const auto scales = part(file, weight + ".scales", packed.scheme.scale == ScaleType::f16 ? DType::f16 : DType::f32);
  packed.scales.assign(scales.begin(), scales.end());
  packed.zero_points = bytes_or_none(file, weight + ".zero_points");
  packed.block_ids = read_codes(file, weight + ".block_ids", block_id_layout(packed), decoded_before);
  if (const TensorEntry* entry = file.find(weight + ".codebook")) {
    const auto bytes = part(file, entry->name, DType::f32);
    packed.codebook.resize(bytes.size() / sizeof(float));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(packed.codebook.data()));
  }
  validate(packed, file.path().string() + ": " + weight);

  Parameter parameter;
  parameter.name = weight;
  for (std::string_view suffix : part_suffixes) {
    const TensorEntry* entry = file.find(weight + std::string(suffix));
    if (entry == nullptr) continue;
    const auto bytes = static_cast<int64_t>(entry->bytes.size());
    parameter.file_bytes += bytes;
    if (suffix.ends_with(stream_suffix)) parameter.compressed_bytes += bytes;
  }
  parameter.value = std::move(packed);
  return parameter;
}

/// Whether a tensor is a scalar that inference does not read: PyTorch's counter of batches,
/// profilers' counts of operations, the number of averaged steps. Notes its name in `dict`.
bool leaves_out(StateDict& dict, const std::string& name, std::span<const int64_t> sizes) {
  const std::string part = name.substr(name.rfind('.') + 1);
  for (const char* parameter : {"weight", "bias", "running_mean", "running_var"})
    if (part == parameter) return false;
  if (std::ranges::any_of(sizes, [](int64_t size) { return size != 1; })) return false;
  if (part != "num_batches_tracked") dict.left_out.push_back(name);
  return true;
}

/// The name without the prefix `key` and its dot; nothing when it has another prefix.
std::optional<std::string> under(const std::string& key, const std::string& name) {
  if (key.empty()) return name;
  if (!name.starts_with(key + ".")) return std::nullopt;
  return name.substr(key.size() + 1);
}

/// `file` is a SafetensorsFile or a PthFile.
void expect_found(const StateDict& dict, const std::string& key, const auto& file) {
  if (key.empty() || !dict.parameters.empty()) return;
  fail<UsageError>("--key {}: {} has nothing under it; it has {}", key, file.path().string(),
                   file.tensors().empty() ? "no tensors" : in_quotes(file.tensors().front().name) + " and so on");
}

/// Compares names part by part, numbers as numbers: "features.3.weight" before
/// "features.10.weight".
bool in_network_order(const Parameter& a, const Parameter& b) {
  const auto key = [](std::string_view name) {
    std::vector<std::pair<int64_t, std::string_view>> parts;
    while (!name.empty()) {
      const size_t dot = std::min(name.find('.'), name.size());
      int64_t number = -1;
      std::from_chars(name.data(), name.data() + dot, number);
      parts.emplace_back(number, name.substr(0, dot));
      name.remove_prefix(std::min(dot + 1, name.size()));
    }
    return parts;
  };
  // Words are in reverse alphabetical order: "features" before "classifier", "weight" before
  // "bias".
  return std::ranges::lexicographical_compare(key(a.name), key(b.name), [](const auto& x, const auto& y) {
    return x.first != y.first ? x.first < y.first : x.second > y.second;
  });
}

/// The format in a file's metadata. Throws FormatError for one of ours that holds no model, and for
/// a version that this program does not know.
std::string_view expect_format(const std::map<std::string, std::string>& metadata, const std::string& file) {
  const std::string_view format = value_of(metadata, format_key), version = value_of(metadata, version_key);
  if (!format.starts_with(format_prefix)) return format;
  if (format != packed_format && format != float_format)
    fail<FormatError>("{}: its format is {}, a model's is {} or {}", file, in_quotes(format), packed_format,
                      float_format);
  const bool older = format == packed_format && (version == plain_version || version == compressed_version);
  if (version != checked_version && !older)
    fail<FormatError>("{}: {} of version {}, this program reads {}", file, format, in_quotes(version),
                      format == packed_format
                          ? fmt::format("versions {}, {} and {}", plain_version, compressed_version, checked_version)
                          : fmt::format("version {}", checked_version));
  return format;
}

StateDict load_safetensors(const std::filesystem::path& path, const std::string& wanted) {
  const SafetensorsFile file(path);
  StateDict dict;
  dict.metadata = file.metadata();
  dict.file_bytes = file.file_bytes();
  dict.header_bytes = file.header_bytes();

  file.verify();
  const bool packed = expect_format(dict.metadata, path.string()) == packed_format;

  std::set<std::string> consumed;
  int64_t decoded = 0;
  if (packed) {
    for (const auto& [key, value] : file.metadata()) {
      if (!key.starts_with(scheme_prefix)) continue;
      const std::string weight = key.substr(scheme_prefix.size());
      try {
        dict.parameters.push_back(read_packed(file, weight, value, decoded));
      } catch (const ShapeError& error) {
        fail<FormatError>("{}: {}: {}", path.string(), weight, error.what());
      }
      for (std::string_view suffix : part_suffixes) consumed.insert(weight + std::string(suffix));
    }
  }
  for (const TensorEntry& entry : file.tensors()) {
    if (consumed.contains(entry.name)) continue;
    const std::optional<std::string> name = under(wanted, entry.name);
    if (!name || leaves_out(dict, entry.name, entry.sizes)) {
      dict.header_bytes += static_cast<int64_t>(entry.bytes.size());
      continue;
    }
    dict.parameters.push_back({.name = *name,
                               .value = read_float(file, entry, host_memory(), MemoryCategory::data),
                               .file_bytes = static_cast<int64_t>(entry.bytes.size()),
                               .stored_as = std::string(torch_name(entry.dtype))});
  }
  if (packed) std::ranges::stable_sort(dict.parameters, in_network_order);
  expect_found(dict, wanted, file);
  return dict;
}

StateDict load_pth(const std::filesystem::path& path, const Reading& reading) {
  const PthFile file(path, reading.key);
  StateDict dict;
  try {
    file.verify();
  } catch (const FormatError& error) {
    if (reading.checksums == Checksums::strict) throw;
    dict.warnings.emplace_back(error.what());
  }
  dict.file_bytes = dict.header_bytes = file.file_bytes();
  for (const PthTensor& tensor : file.tensors()) {
    const std::optional<std::string> name = under(file.key_left(), tensor.name);
    if (!name || leaves_out(dict, tensor.name, tensor.sizes)) continue;
    dict.parameters.push_back({.name = *name,
                               .value = read_float(file, tensor, host_memory(), MemoryCategory::data),
                               .file_bytes = tensor.file_bytes,
                               .stored_as = std::string(tensor.element->name)});
    dict.header_bytes -= tensor.file_bytes;
  }
  dict.notes = file.notes();
  expect_found(dict, file.key_left(), file);
  return dict;
}

}  // namespace

const Shape& Parameter::shape() const {
  return packed() ? std::get<PackedTensor>(value).shape : std::get<Tensor<float>>(value).shape();
}

Tensor<float>& Parameter::values() {
  if (packed()) fail<FormatError>("{} is packed; a float model is needed here", name);
  return std::get<Tensor<float>>(value);
}

const Tensor<float>& Parameter::values() const { return const_cast<Parameter*>(this)->values(); }

const PackedTensor& Parameter::packed_values() const {
  if (!packed()) fail<FormatError>("{} is not packed; a packed model is needed here", name);
  return std::get<PackedTensor>(value);
}

Tensor<float> Parameter::dequantized() const {
  Tensor<float> copy(host_memory(), shape(), MemoryCategory::data);
  if (packed())
    dequantize(packed_values(), copy.view());
  else
    std::ranges::copy(values().view(), copy.data());
  return copy;
}

const Parameter* StateDict::find(std::string_view name) const {
  const auto found = std::ranges::find(parameters, name, &Parameter::name);
  return found == parameters.end() ? nullptr : &*found;
}

Parameter* StateDict::find(std::string_view name) { return const_cast<Parameter*>(std::as_const(*this).find(name)); }

const Parameter& StateDict::at(std::string_view name) const {
  const Parameter* found = find(name);
  if (found == nullptr) fail<FormatError>("the model has no parameter {}", name);
  return *found;
}

Parameter& StateDict::at(std::string_view name) { return const_cast<Parameter&>(std::as_const(*this).at(name)); }

int64_t StateDict::weight_count() const {
  int64_t weights = 0;
  for (const Parameter& parameter : parameters) weights += parameter.is_weight() ? parameter.shape().elements() : 0;
  return weights;
}

bool StateDict::packed() const { return std::ranges::any_of(parameters, &Parameter::packed); }

StateDict load_state_dict(const std::filesystem::path& path, const Reading& reading) {
  return is_pth(path) ? load_pth(path, reading) : load_safetensors(path, reading.key);
}

void save_state_dict(const std::filesystem::path& path, const StateDict& dict, Compression compression,
                     const OnEncoding& on_encoding) {
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : dict.metadata)
    if (!key.starts_with(scheme_prefix) && !key.starts_with(shape_prefix) && !key.starts_with(compression_prefix) &&
        !key.starts_with(checksum_prefix))
      metadata[key] = value;
  metadata[std::string(format_key)] = dict.packed() ? packed_format : float_format;
  metadata[std::string(version_key)] = checked_version;

  std::vector<TensorToWrite> tensors;
  const auto add = [&](std::string name, DType dtype, std::vector<int64_t> sizes, std::span<const uint8_t> bytes) {
    if (!bytes.empty()) tensors.push_back({std::move(name), dtype, std::move(sizes), bytes});
  };
  std::deque<std::vector<uint8_t>> streams;  // a deque, since `tensors` holds views of its elements
  int64_t decoded = 0;                       // bytes that the streams decode to; readers limit them
  const auto add_codes = [&](const std::string& name, const CodeLayout& layout, const std::vector<uint8_t>& codes) {
    // Block ids of more than 8 bits stay plain: blocks have equal sizes, so compression gains
    // almost nothing.
    const bool fits = layout.bits <= 8 && layout.bytes() <= max_decoded_bytes - decoded;
    auto stream = compression == Compression::rans && fits ? compressed_if_smaller(codes, layout) : std::nullopt;
    if (!stream) return add(name, DType::u8, {layout.channels, layout.stride()}, codes);
    decoded += layout.bytes();
    streams.push_back(std::move(*stream));
    add(name + std::string(stream_suffix), DType::u8, {static_cast<int64_t>(streams.back().size())}, streams.back());
    metadata[std::string(compression_prefix) + name] = std::string(rans_method) + checksum_of(codes);
  };
  int64_t encoded = 0, total = 0;
  for (const Parameter& parameter : dict.parameters) total += parameter.packed() ? parameter.shape().elements() : 0;
  for (const Parameter& parameter : dict.parameters) {
    if (!parameter.packed()) {
      const Tensor<float>& values = parameter.values();
      const auto sizes = values.shape().sizes();
      tensors.push_back({parameter.name, DType::f32, {sizes.begin(), sizes.end()}, bytes_of(values.view().span())});
      continue;
    }
    const PackedTensor& packed = parameter.packed_values();
    if (on_encoding) on_encoding(encoded, total, parameter.name);
    encoded += packed.shape.elements();
    metadata[std::string(scheme_prefix) + parameter.name] = to_string(packed.scheme);
    metadata[std::string(shape_prefix) + parameter.name] = to_string(packed.shape);
    add_codes(parameter.name + ".codes", code_layout(packed), packed.codes);
    add(parameter.name + ".scales", packed.scheme.scale == ScaleType::f16 ? DType::f16 : DType::f32, {packed.groups()},
        packed.scales);
    add(parameter.name + ".zero_points", DType::u8, {packed.groups()}, packed.zero_points);
    add_codes(parameter.name + ".block_ids", block_id_layout(packed), packed.block_ids);
    add(parameter.name + ".codebook", DType::f32, {static_cast<int64_t>(packed.codebook.size())},
        bytes_of(std::span<const float>(packed.codebook)));
  }
  write_safetensors(path, tensors, metadata);
}

void save_pth(const std::filesystem::path& path, const StateDict& dict) {
  std::vector<PthTensorToWrite> tensors;
  for (const Parameter& parameter : dict.parameters)
    tensors.push_back({.name = parameter.name, .values = parameter.values().view()});
  write_pth(path, tensors);
}

StateDict copy_of(const StateDict& dict) {
  StateDict copy{.metadata = dict.metadata,
                 .file_bytes = dict.file_bytes,
                 .header_bytes = dict.header_bytes,
                 .warnings = dict.warnings,
                 .left_out = dict.left_out,
                 .notes = dict.notes};
  for (const Parameter& parameter : dict.parameters) {
    Parameter& to = copy.parameters.emplace_back();
    to.name = parameter.name;
    if (parameter.packed())
      to.value = parameter.packed_values();
    else
      to.value = parameter.dequantized();
    to.file_bytes = parameter.file_bytes;
    to.compressed_bytes = parameter.compressed_bytes;
    to.stored_as = parameter.stored_as;
  }
  return copy;
}

StateDict dequantized(const StateDict& dict) {
  StateDict result;
  result.metadata = dict.metadata;
  for (const Parameter& parameter : dict.parameters)
    result.parameters.push_back({.name = parameter.name, .value = parameter.dequantized()});
  return result;
}

}  // namespace nibblenet
