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

/// Names a value on a PickleHeap. Values refer to each other by these, so that a pickle may share
/// them and build cycles.
using PickleId = uint32_t;

/// The kind of a value in a pickle.
enum class PickleKind : uint8_t {
  none,
  boolean,
  integer,
  large_integer,  ///< beyond 64 bits: `text` holds its little-endian bytes
  real,           ///< its value is not kept: nothing in a state dict needs it
  text,           ///< str, bytes or bytearray
  tuple,
  list,
  set,
  dict,
  symbol,     ///< a global: `text` is "module\nname"
  storage,    ///< `integer` is its place among the storages of a PthObjects
  tensor,     ///< `integer` is its place among the tensors of a PthObjects
  parameter,  ///< an old Parameter object: `items` is its tensor, or empty
  object,     ///< what some other global would make: `text` is that symbol; nothing else is kept
};

/// A value in a pickle: its kind, and the fields of that kind.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  int64_t integer = 0;          ///< boolean, integer, storage, tensor
  std::string_view text;        ///< points into the pickle
  std::vector<PickleId> items;  ///< of a tuple, list or set; of a dict: key, value, key, value, …
};

/// The values of a file's pickles. Their number and the number of their references are limited, so
/// that no input, however it repeats itself through the memo, takes more than some 100 MB. Going
/// beyond throws FormatError.
class PickleHeap {
 public:
  /// `name` is what messages call the file.
  explicit PickleHeap(std::string name) : name_(std::move(name)) {}

  /// Adds a value, and appends an item to a container. Throws FormatError for too many.
  PickleId add(PickleValue value);
  void append(PickleId container, PickleId item);
  /// "module\nname", which the heap keeps. Throws FormatError for a long one and for too many.
  std::string_view symbol(std::string_view module, std::string_view name);
  const PickleValue& operator[](PickleId id) const { return values_[id]; }
  PickleValue& operator[](PickleId id) { return values_[id]; }

 private:
  std::string name_;
  std::deque<PickleValue> values_;
  std::set<std::string> symbols_;
  size_t references_ = 0;
};

/// What a pickle may ask for beyond plain values. The machine calls nothing by itself, and what a
/// value that is an object is asked to do is passed over.
class PickleActions {
 public:
  virtual ~PickleActions() = default;
  /// REDUCE and NEWOBJ: the value that the global `symbol` makes of a tuple of arguments.
  virtual PickleId call(std::string_view symbol, PickleId arguments) = 0;
  /// BUILD: gives `object` its state.
  virtual void build(PickleId object, PickleId state) = 0;
  /// BINPERSID: the value that a persistent id stands for.
  virtual PickleId load(PickleId persistent_id) = 0;
};

/// A place in the bytes that pickles are read from; each one begins where the one before ended.
struct PickleSource {
  std::span<const uint8_t> bytes;
  size_t position = 0;
  std::string name;  ///< for messages: file, or file and entry
};

/// Runs one pickle up to its STOP and returns the value it leaves. Understands the opcodes that
/// Python's pickler writes in protocols 2 to 5, buffers out of band and registered extensions
/// aside. Throws FormatError with the byte where it stands.
PickleId run_pickle(PickleSource& source, PickleHeap& heap, PickleActions& actions);

}  // namespace nibblenet
