#include "engine/io/cifar10_python.h"

#include <map>
#include <utility>

#include "engine/io/cifar10.h"
#include "engine/io/pickle.h"

namespace nibblenet {
namespace {

/// What a file of the Python version holds.
class CifarPickle final : private PickleActions {
 public:
  CifarPickle(std::span<const uint8_t> file, const std::string& location)
      : source_{.bytes = file, .position = 0, .name = location}, heap_(location) {
    root_ = run_pickle(source_, heap_, *this);
  }

  /// The value under a key of the dict. Throws FormatError when there is none of that kind.
  const PickleValue& member(std::string_view key, PickleKind kind, std::string_view what) const {
    const std::vector<PickleId>& items = heap_[root_].items;
    for (size_t i = 0; heap_[root_].kind == PickleKind::dict && i < items.size(); i += 2)
      if (heap_[items[i]].kind == PickleKind::text && heap_[items[i]].text == key && heap_[items[i + 1]].kind == kind)
        return heap_[items[i + 1]];
    fail<FormatError>("{} is no part of CIFAR-10's Python version: it has no '{}' that is {}", source_.name, key, what);
  }

  /// The bytes of an array of that shape; nothing when it is another, or does not lie row by row.
  std::string_view bytes(const PickleValue& array, size_t rows, size_t columns) const {
    if (array.items.empty()) return {};
    const PickleValue &shape = heap_[array.items[0]], &type = heap_[array.items[1]], &bytes = heap_[array.items[2]];
    const auto is = [&](size_t axis, size_t size) {
      const PickleValue& length = heap_[shape.items[axis]];
      return length.kind == PickleKind::integer && std::cmp_equal(length.integer, size);
    };
    const bool fits = shape.items.size() == 2 && is(0, rows) && is(1, columns) && type.text == "u1";
    return fits && bytes.kind == PickleKind::text && bytes.text.size() == rows * columns ? bytes.text
                                                                                         : std::string_view();
  }

  const PickleValue& at(PickleId id) const { return heap_[id]; }

 private:
  PickleId call(std::string_view symbol, PickleId arguments) override {
    const std::vector<PickleId>& values = heap_[arguments].items;
    // NumPy 2 calls numpy.core numpy._core.
    const auto is = [&](std::string_view name) {
      return symbol.ends_with(name) && (symbol.starts_with("numpy.core.") || symbol.starts_with("numpy._core."));
    };
    if (is(".multiarray\n_reconstruct")) return heap_.add({.kind = PickleKind::array});
    if (is(".numeric\n_frombuffer") && values.size() == 4 && heap_[values[3]].text == "C") {
      const PickleId array = heap_.add({.kind = PickleKind::array});
      fill(array, values[2], values[1], values[0]);
      return array;
    }
    if (symbol == "_codecs\nencode" && values.size() == 2 && heap_[values[1]].text == "latin1" &&
        heap_[values[0]].kind == PickleKind::text)
      return heap_.add({.kind = PickleKind::text, .text = latin1(heap_[values[0]].text)});
    if (symbol == "numpy\ndtype" && !values.empty())
      return heap_.add({.kind = PickleKind::object, .text = heap_[values[0]].text});
    return heap_.add({.kind = PickleKind::object, .text = symbol});
  }

  /// The state of an array: version, shape, type, whether it lies column by column, bytes.
  void build(PickleId object, PickleId state) override {
    const std::vector<PickleId>& values = heap_[state].items;
    if (heap_[object].kind == PickleKind::array && heap_[object].items.empty() && values.size() == 5 &&
        heap_[values[3]].kind <= PickleKind::integer && heap_[values[3]].integer == 0)
      fill(object, values[1], values[2], values[4]);
  }

  PickleId load(PickleId) override { fail<FormatError>("{}: it refers to another file", source_.name); }

  /// Bytes, which Python 3 writes in protocol 2 as the text of these characters.
  std::string_view latin1(std::string_view text) {
    const auto [found, is_new] = latin1_.try_emplace(text.data());
    std::string& bytes = found->second;
    for (size_t i = 0; is_new && i < text.size(); ++i) {
      auto byte = static_cast<unsigned char>(text[i]);
      if (byte >= 0x80) {  // of two bytes in UTF-8
        const bool whole = (byte & 0xFE) == 0xC2 && i + 1 < text.size() && (text[i + 1] & 0xC0) == 0x80;
        if (!whole) fail<FormatError>("{}: a text in place of bytes has characters that are none", source_.name);
        byte = static_cast<unsigned char>(byte << 6 | (text[++i] & 0x3F));
      }
      bytes += static_cast<char>(byte);
    }
    return bytes;
  }

  void fill(PickleId array, PickleId shape, PickleId type, PickleId bytes) {
    for (const PickleId value : {shape, type, bytes}) heap_.append(array, value);
  }

  PickleSource source_;
  PickleHeap heap_;
  std::map<const char*, std::string> latin1_;  ///< what latin1() made, by its argument: a pickle may repeat it
  PickleId root_ = 0;
};

}  // namespace

std::vector<uint8_t> records_of_pickle(std::span<const uint8_t> file, const std::string& location) {
  const CifarPickle batch(file, location);
  const std::vector<PickleId>& labels = batch.member("labels", PickleKind::list, "a list").items;
  constexpr size_t image = 3 * cifar_plane_bytes;
  const std::string_view pixels =
      batch.bytes(batch.member("data", PickleKind::array, "a NumPy array"), labels.size(), image);
  if (pixels.empty())
    fail<FormatError>("{}: its 'data' is no array of {} x {} bytes, row by row, as its {} labels ask for", location,
                      labels.size(), image, labels.size());
  std::vector<uint8_t> records;
  records.reserve(labels.size() * cifar_record_bytes);
  for (size_t i = 0; i < labels.size(); ++i) {
    const PickleValue& label = batch.at(labels[i]);
    if (label.kind != PickleKind::integer || label.integer < 0 || label.integer > UINT8_MAX)
      fail<FormatError>("{}: label {} is no integer from 0 to {}", location, i, UINT8_MAX);
    records.push_back(static_cast<uint8_t>(label.integer));
    const std::string_view part = pixels.substr(i * image, image);
    records.insert(records.end(), part.begin(), part.end());
  }
  return records;
}

std::vector<uint8_t> names_of_pickle(std::span<const uint8_t> file, const std::string& location) {
  const CifarPickle meta(file, location);
  std::vector<uint8_t> lines;
  for (const PickleId id : meta.member("label_names", PickleKind::list, "a list").items) {
    const PickleValue& name = meta.at(id);
    if (name.kind != PickleKind::text || name.text.empty() || name.text.find('\n') != name.text.npos)
      fail<FormatError>("{}: a class name that is no line of text", location);
    lines.insert(lines.end(), name.text.begin(), name.text.end());
    lines.push_back('\n');
  }
  return lines;
}

}  // namespace nibblenet
