#include "engine/io/safetensors_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <ranges>
#include <set>
#include <tuple>

#include "engine/io/json.h"

namespace nibblenet {
namespace {

struct DTypeTraits {
  DType dtype;
  std::string_view name;
  size_t bytes;
};

constexpr std::array<DTypeTraits, 13> dtype_table = {{
    {DType::boolean, "BOOL", 1},
    {DType::u8, "U8", 1},
    {DType::i8, "I8", 1},
    {DType::u16, "U16", 2},
    {DType::i16, "I16", 2},
    {DType::f16, "F16", 2},
    {DType::bf16, "BF16", 2},
    {DType::i32, "I32", 4},
    {DType::u32, "U32", 4},
    {DType::f32, "F32", 4},
    {DType::i64, "I64", 8},
    {DType::u64, "U64", 8},
    {DType::f64, "F64", 8},
}};

// Limits far above any model. Without them, a header of 100 MB could ask for millions of tensors, a
// gigabyte of memory and many seconds.
constexpr size_t most_tensors = 131'072;
constexpr size_t most_metadata = 4 * most_tensors;  // checksum, scheme, shape and compression of each
constexpr size_t most_dimensions = 64;
constexpr int64_t largest_tensor = int64_t{1} << 62;  // bytes; Shape counts no further

const DTypeTraits& traits_of(DType dtype) { return dtype_table.at(static_cast<size_t>(dtype)); }

/// Handles the JSON while it is parsed, and keeps only what the format defines. A document would
/// lose duplicate names, and would let a small file ask for a lot of memory.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& file, SafetensorsHeader& header) : file_(file), header_(header) {}

  bool key(string_t& name) override {
    if (place_ == Place::top) {
      if (!names_.insert(name).second) refuse("the name {} occurs twice", in_quotes(name));
    } else if (place_ == Place::metadata) {
      if (header_.metadata.contains(name)) refuse("the metadata key {} occurs twice", in_quotes(name));
    } else if (const uint8_t field = field_bit(name); (fields_ & field) != 0) {
      refuse("{} has two fields {}", in_quotes(tensor_.name), in_quotes(name));
    } else {
      fields_ |= field;
    }
    key_ = std::move(name);
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::before) {
      place_ = Place::top;
    } else if (place_ == Place::top && key_ == "__metadata__") {
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      if (header_.tensors.size() == most_tensors) refuse("it has more than {} tensors", most_tensors);
      place_ = Place::tensor;
      tensor_ = {};
      tensor_.name = key_;
      offsets_ = 0;
      fields_ = 0;
    } else {
      refuse("an object {}", where());
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) {
      if (fields_ != 7) refuse("{} lacks one of the fields dtype, shape, data_offsets", in_quotes(tensor_.name));
      header_.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::top ? Place::after : Place::top;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") refuse("a list {}", where());
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != 2)
      refuse("{} has {} data_offsets, expected 2", in_quotes(tensor_.name), offsets_);
    place_ = Place::tensor;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      if (header_.metadata.size() == most_metadata) refuse("it has more than {} metadata keys", most_metadata);
      header_.metadata.emplace(key_, std::move(value));
    } else if (place_ == Place::tensor && key_ == "dtype") {
      const auto* found = std::ranges::find(dtype_table, std::string_view(value), &DTypeTraits::name);
      if (found == dtype_table.end())
        refuse("{} has elements of type {}, supported are {}", in_quotes(tensor_.name), in_quotes(value),
               fmt::join(std::views::transform(dtype_table, &DTypeTraits::name), ", "));
      tensor_.dtype = found->dtype;
    } else {
      refuse("a text {}", where());
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        (place_ != Place::shape && place_ != Place::offsets) || (place_ == Place::offsets && offsets_ == 2))
      refuse("the number {} {}", value, where());
    if (place_ == Place::shape) {
      if (tensor_.sizes.size() == most_dimensions)
        refuse("{} has more than {} dimensions", in_quotes(tensor_.name), most_dimensions);
      tensor_.sizes.push_back(static_cast<int64_t>(value));
    } else {
      (offsets_ == 0 ? tensor_.begin : tensor_.end) = value;
      ++offsets_;
    }
    return true;
  }

  bool number_integer(number_integer_t value) override { refuse("the negative number {} {}", value, where()); }
  bool number_float(number_float_t, const string_t& text) override {
    refuse("{}, which is no 64-bit integer, {}", in_quotes(text), where());
  }
  bool null() override { refuse("null {}", where()); }
  bool boolean(bool) override { refuse("true or false {}", where()); }
  bool binary(binary_t&) override { refuse("binary data {}", where()); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    refuse("no valid JSON at byte {}", position);
  }

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail<FormatError>("{}: broken safetensors header: {}; fetch or write the file again", file_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  enum class Place : uint8_t { before, top, metadata, tensor, shape, offsets, after };

  uint8_t field_bit(const std::string& name) const {
    if (name == "dtype") return 1;
    if (name == "shape") return 2;
    if (name == "data_offsets") return 4;
    refuse("{} has an unknown field {}", in_quotes(tensor_.name), in_quotes(name));
  }

  std::string where() const {
    switch (place_) {
      case Place::before:
        return "where the object of all tensors should be";
      case Place::metadata:
        return fmt::format("in metadata {}, which holds texts only", in_quotes(key_));
      case Place::shape:
      case Place::offsets:
        return fmt::format("in {} of {}, which holds {}sizes in bytes or elements only", key_, in_quotes(tensor_.name),
                           place_ == Place::offsets ? "two " : "");
      case Place::tensor:
        return fmt::format("as {} of {}", key_, in_quotes(tensor_.name));
      case Place::top:
      case Place::after:
        break;
    }
    return fmt::format("where tensor {} should be described", in_quotes(key_));
  }

  const std::string& file_;
  SafetensorsHeader& header_;
  Place place_ = Place::before;
  std::set<std::string> names_;
  std::string key_;
  SafetensorsHeader::Tensor tensor_;  ///< the one being read
  int offsets_ = 0;                   ///< how many of its data_offsets were read
  uint8_t fields_ = 0;                ///< bit set of its fields seen
};

}  // namespace

size_t size_of(DType dtype) { return traits_of(dtype).bytes; }

std::string_view to_string(DType dtype) { return traits_of(dtype).name; }

bool tensor_bytes(DType dtype, std::span<const int64_t> sizes, uint64_t& bytes) {
  auto product = static_cast<int64_t>(size_of(dtype));
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(product, size, &product) || product > largest_tensor) return false;
  bytes = static_cast<uint64_t>(product);
  return true;
}

std::string in_quotes(std::string_view text) {
  constexpr size_t longest = 100;
  std::string result = "'";
  for (const char c : text.substr(0, longest)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      result += c;
    }
  }
  return result + (text.size() > longest ? "…'" : "'");
}

std::string json_text(const std::string& text, const std::filesystem::path& path) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    fail<FormatError>("cannot write {}: {} is no UTF-8 text", path.string(), in_quotes(text));
  }
}

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes, const std::string& file) {
  SafetensorsHeader header;
  HeaderReader reader(file, header);
  // The parser would skip a byte order mark and end at a NUL; the format has neither.
  if (!json.starts_with('{')) reader.refuse("it does not begin with '{{'");
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) reader.refuse("no valid JSON at byte {}", nul);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);

  for (const SafetensorsHeader::Tensor& tensor : header.tensors) {
    const std::string name = in_quotes(tensor.name);
    uint64_t bytes = 0;
    if (!tensor_bytes(tensor.dtype, tensor.sizes, bytes)) reader.refuse("{} is too large to address", name);
    if (tensor.begin > tensor.end || tensor.end > data_bytes)
      reader.refuse("{} lies at bytes [{}, {}) of {} bytes of data", name, tensor.begin, tensor.end, data_bytes);
    if (tensor.end - tensor.begin != bytes)
      reader.refuse("{} needs {} bytes ({} [{}]) but has {}", name, bytes, to_string(tensor.dtype),
                    fmt::join(tensor.sizes, ", "), tensor.end - tensor.begin);
  }
  std::ranges::stable_sort(header.tensors, {}, [](const auto& tensor) { return std::tuple(tensor.begin, tensor.end); });
  uint64_t covered = 0;
  for (const SafetensorsHeader::Tensor& tensor : header.tensors) {
    if (tensor.begin < covered) reader.refuse("{} overlaps the tensor before it", in_quotes(tensor.name));
    if (tensor.begin > covered) reader.refuse("bytes [{}, {}) belong to no tensor", covered, tensor.begin);
    covered = tensor.end;
  }
  if (covered != data_bytes) reader.refuse("bytes [{}, {}) belong to no tensor", covered, data_bytes);
  return header;
}

}  // namespace nibblenet
