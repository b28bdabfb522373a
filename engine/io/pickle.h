#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/error.h"

namespace nibblenet {

/// The number of a value on a PickleHeap. Values refer to each other by number, since a pickle may
/// share them and build cycles.
using PickleId = uint32_t;

/// The kind of a value in a pickle.
enum class PickleKind : uint8_t {
  none,
  boolean,
  integer,
  large_integer,  ///< beyond 64 bits: `text` holds its little-endian bytes
  real,           ///< its value is not kept: no state dict needs it
  text,           ///< str, bytes or bytearray
  tuple,
  list,
  set,
  dict,
  symbol,     ///< a global: `text` is "module\nname"
  storage,    ///< `integer` is its place among the storages of a PthObjects
  tensor,     ///< `integer` is its place among the tensors of a PthObjects
  parameter,  ///< an old Parameter object: `items` is its tensor, or empty
  array,      ///< a NumPy array: `items` are its shape, its type and its bytes, or empty
  object,     ///< an object of some other global: `text` is that symbol; nothing else is kept
};

/// A value in a pickle: its kind, and the fields of that kind.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  int64_t integer = 0;          ///< boolean, integer, storage, tensor
  std::string_view text;        ///< points into the pickle
  std::vector<PickleId> items;  ///< of a tuple, list or set; of a dict: key, value, key, value, …
};

/// The values of a file's pickles. Their number and that of their references are limited, so that
/// no input takes more than some 100 MB, however it repeats itself through the memo. Beyond the
/// limits, functions throw FormatError.
class PickleHeap {
 public:
  /// `name` names the file in messages.
  explicit PickleHeap(std::string name) : name_(std::move(name)) {}

  /// Adds a value, and appends an item to a container. Throws FormatError for too many.
  PickleId add(PickleValue value);
  void append(PickleId container, PickleId item);
  /// Keeps and returns the symbol "module\nname". Throws FormatError for a long one and for too
  /// many.
  std::string_view symbol(std::string_view module, std::string_view name);
  const PickleValue& operator[](PickleId id) const { return values_[id]; }
  PickleValue& operator[](PickleId id) { return values_[id]; }

 private:
  std::string name_;
  std::deque<PickleValue> values_;
  std::set<std::string> symbols_;
  size_t references_ = 0;
};

/// The actions that a pickle may request beyond plain values. run_pickle() calls nothing else, and
/// ignores requests to a value that is an `object`.
class PickleActions {
 public:
  virtual ~PickleActions() = default;
  /// REDUCE and NEWOBJ: returns the value that the global `symbol` makes of a tuple of arguments.
  virtual PickleId call(std::string_view symbol, PickleId arguments) = 0;
  /// BUILD: gives `object` its state.
  virtual void build(PickleId object, PickleId state) = 0;
  /// BINPERSID: returns the value that a persistent id stands for.
  virtual PickleId load(PickleId persistent_id) = 0;
};

/// The bytes that pickles are read from, one after the other, and the position of the next one.
struct PickleSource {
  std::span<const uint8_t> bytes;
  size_t position = 0;
  std::string name;  ///< for messages: file, or file and entry
};

/// Thrown when a pickle goes on behind the end of its source, at least up to the byte `needed`.
class PickleCutOff : public FormatError {
 public:
  PickleCutOff(const std::string& message, uint64_t needed_bytes) : FormatError(message), needed(needed_bytes) {}
  uint64_t needed;
};

/// Runs one pickle up to its STOP and returns its value. Understands the opcodes that Python's
/// pickler writes in protocols 2 to 5, except for out-of-band buffers and registered extensions.
/// Throws FormatError with the byte of the opcode at fault.
PickleId run_pickle(PickleSource& source, PickleHeap& heap, PickleActions& actions);

}  // namespace nibblenet
