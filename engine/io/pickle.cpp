#include "engine/io/pickle.h"

#include <array>
#include <cstring>
#include <unordered_map>

namespace nibblenet {
namespace {

// Limits for hostile files. A network of 1,000 layers with the state of its optimizer has 100,000
// values.
constexpr size_t most_values = size_t{1} << 20;
constexpr size_t most_references = size_t{1} << 22;

constexpr uint8_t stop = '.';

class PickleMachine {
 public:
  PickleMachine(PickleSource& source, PickleHeap& heap, PickleActions& actions)
      : source_(source), heap_(heap), actions_(actions) {}

  PickleId run() {
    while (true) {
      opcode_at_ = source_.position;
      const auto opcode = take<uint8_t>();
      if (opcode == stop) return pop();
      const Action action = actions()[opcode];
      if (action == nullptr) refuse("opcode {:#04x} is none that is read here", opcode);
      action(*this);
    }
  }

 private:
  using Action = void (*)(PickleMachine&);
  struct Instruction {
    uint8_t opcode;
    Action action;
  };

  /// What an opcode does; null for one that no state dict has. Each stands beside its name in
  /// Python's pickletools.
  static const std::array<Action, 256>& actions() {
    using Machine = PickleMachine;
    using enum PickleKind;
    static constexpr Instruction instructions[] = {
        // values
        {'N', [](Machine& m) { m.push(PickleValue{}); }},                     // NONE
        {0x88, [](Machine& m) { m.push({.kind = boolean, .integer = 1}); }},  // NEWTRUE
        {0x89, [](Machine& m) { m.push({.kind = boolean, .integer = 0}); }},  // NEWFALSE
        {'J', [](Machine& m) { m.push_integer(m.take<int32_t>()); }},         // BININT
        {'K', [](Machine& m) { m.push_integer(m.take<uint8_t>()); }},         // BININT1
        {'M', [](Machine& m) { m.push_integer(m.take<uint16_t>()); }},        // BININT2
        {0x8A, [](Machine& m) { m.push_long(m.take<uint8_t>()); }},           // LONG1
        {0x8B, [](Machine& m) { m.push_long(m.take<uint32_t>()); }},          // LONG4
        {'G', [](Machine& m) { m.push_real(); }},                             // BINFLOAT
        {'U', [](Machine& m) { m.push_text<uint8_t>(); }},                    // SHORT_BINSTRING
        {'C', [](Machine& m) { m.push_text<uint8_t>(); }},                    // SHORT_BINBYTES
        {0x8C, [](Machine& m) { m.push_text<uint8_t>(); }},                   // SHORT_BINUNICODE
        {'T', [](Machine& m) { m.push_text<uint32_t>(); }},                   // BINSTRING
        {'B', [](Machine& m) { m.push_text<uint32_t>(); }},                   // BINBYTES
        {'X', [](Machine& m) { m.push_text<uint32_t>(); }},                   // BINUNICODE
        {0x8D, [](Machine& m) { m.push_text<uint64_t>(); }},                  // BINUNICODE8
        {0x8E, [](Machine& m) { m.push_text<uint64_t>(); }},                  // BINBYTES8
        {0x96, [](Machine& m) { m.push_text<uint64_t>(); }},                  // BYTEARRAY8
        {'c', [](Machine& m) { m.push_global(); }},                           // GLOBAL
        {0x93, [](Machine& m) { m.push_stack_global(); }},                    // STACK_GLOBAL
        // containers
        {'(', [](Machine& m) { m.push_mark(); }},                               // MARK
        {'0', [](Machine& m) { m.pop(); }},                                     // POP, behind a value that holds itself
        {'1', [](Machine& m) { m.pop_to_mark(); }},                             // POP_MARK
        {']', [](Machine& m) { m.push({.kind = list}); }},                      // EMPTY_LIST
        {'}', [](Machine& m) { m.push({.kind = dict}); }},                      // EMPTY_DICT
        {0x8F, [](Machine& m) { m.push({.kind = set}); }},                      // EMPTY_SET
        {')', [](Machine& m) { m.push({.kind = tuple}); }},                     // EMPTY_TUPLE
        {'t', [](Machine& m) { m.push_container(tuple, m.pop_to_mark()); }},    // TUPLE
        {0x85, [](Machine& m) { m.push_container(tuple, m.pop_last(1)); }},     // TUPLE1
        {0x86, [](Machine& m) { m.push_container(tuple, m.pop_last(2)); }},     // TUPLE2
        {0x87, [](Machine& m) { m.push_container(tuple, m.pop_last(3)); }},     // TUPLE3
        {0x91, [](Machine& m) { m.push_container(set, m.pop_to_mark()); }},     // FROZENSET
        {'a', [](Machine& m) { m.append_to(list, "list", m.pop_last(1)); }},    // APPEND
        {'e', [](Machine& m) { m.append_to(list, "list", m.pop_to_mark()); }},  // APPENDS
        {0x90, [](Machine& m) { m.append_to(set, "set", m.pop_to_mark()); }},   // ADDITEMS
        {'s', [](Machine& m) { m.append_to(dict, "dict", m.pop_last(2)); }},    // SETITEM
        {'u', [](Machine& m) { m.append_to(dict, "dict", m.pop_to_mark()); }},  // SETITEMS
        // the memo
        {'q', [](Machine& m) { m.remember(m.take<uint8_t>()); }},                       // BINPUT
        {'r', [](Machine& m) { m.remember(m.take<uint32_t>()); }},                      // LONG_BINPUT
        {0x94, [](Machine& m) { m.remember(static_cast<uint32_t>(m.memo_.size())); }},  // MEMOIZE
        {'h', [](Machine& m) { m.recall(m.take<uint8_t>()); }},                         // BINGET
        {'j', [](Machine& m) { m.recall(m.take<uint32_t>()); }},                        // LONG_BINGET
        // calls
        {'R', [](Machine& m) { m.call(); }},                          // REDUCE
        {0x81, [](Machine& m) { m.call(); }},                         // NEWOBJ
        {0x92, [](Machine& m) { m.call_with_keywords(); }},           // NEWOBJ_EX
        {'b', [](Machine& m) { m.build(); }},                         // BUILD
        {'Q', [](Machine& m) { m.push(m.actions_.load(m.pop())); }},  // BINPERSID
        // hints: the protocol, how many bytes to read at once
        {0x80, [](Machine& m) { m.take<uint8_t>(); }},   // PROTO
        {0x95, [](Machine& m) { m.take<uint64_t>(); }},  // FRAME
    };
    static constexpr auto by_opcode = [] {
      std::array<Action, 256> table{};
      for (const Instruction& each : instructions) table[each.opcode] = each.action;
      return table;
    }();
    return by_opcode;
  }

  template <class... Args>
  std::string broken(fmt::format_string<Args...> format, Args&&... args) const {
    return fmt::format("{}: broken pickle at byte {}: {}", source_.name, opcode_at_,
                       fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw FormatError(broken(format, std::forward<Args>(args)...));
  }

  std::string_view take_bytes(size_t count) {
    const size_t rest = source_.bytes.size() - source_.position;
    if (count > rest) {
      const uint64_t needed = count > SIZE_MAX - source_.position ? SIZE_MAX : source_.position + count;
      throw PickleCutOff(broken("{} bytes should follow but only {} do; the file is cut off", count, rest), needed);
    }
    const char* begin = reinterpret_cast<const char*>(source_.bytes.data()) + source_.position;
    source_.position += count;
    return {begin, count};
  }

  /// A little-endian number.
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, take_bytes(sizeof value).data(), sizeof value);
    return value;
  }

  std::string_view take_line() {
    const std::string_view rest(reinterpret_cast<const char*>(source_.bytes.data()) + source_.position,
                                source_.bytes.size() - source_.position);
    const size_t length = rest.find('\n');
    if (length == std::string_view::npos)
      throw PickleCutOff(broken("a name has no end; the file is cut off"), source_.bytes.size() + 1);
    return take_bytes(length + 1).substr(0, length);
  }

  void push(PickleId id) {
    if (stack_.size() >= most_values) refuse("it holds more values than any state dict");
    stack_.push_back(id);
  }
  void push(PickleValue value) { push(heap_.add(std::move(value))); }
  void push_integer(int64_t value) { push({.kind = PickleKind::integer, .integer = value}); }

  /// First place of the stack that the current opcode may touch: that of the last mark.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  void expect(size_t values) const {
    if (stack_.size() - floor() < values) refuse("it takes a value where there is none");
  }

  PickleId pop() {
    expect(1);
    const PickleId id = stack_.back();
    stack_.pop_back();
    return id;
  }

  std::vector<PickleId> pop_last(size_t count) {
    expect(count);
    std::vector<PickleId> items(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  PickleId top(PickleKind kind, std::string_view what) const {
    expect(1);
    if (heap_[stack_.back()].kind != kind) refuse("it fills something that is no {}", what);
    return stack_.back();
  }

  /// Removes the last mark and the values above it, and returns these.
  std::vector<PickleId> pop_to_mark() {
    if (marks_.empty()) refuse("there is no mark");
    std::vector<PickleId> values(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }

  /// Pushes the text behind its length; take_bytes() refuses a length that is too large.
  template <class Length>
  void push_text() {
    push({.kind = PickleKind::text, .text = take_bytes(static_cast<size_t>(take<Length>()))});
  }

  void push_real() {
    take_bytes(sizeof(double));
    push({.kind = PickleKind::real});
  }

  void push_mark() {
    if (marks_.size() >= most_values) refuse("it holds more marks than any state dict");
    marks_.push_back(stack_.size());
  }

  /// LONG1 and LONG4: a number of `count` bytes in two's complement.
  void push_long(size_t count) {
    const std::string_view bytes = take_bytes(count);
    if (bytes.size() > sizeof(int64_t)) return push({.kind = PickleKind::large_integer, .text = bytes});
    const bool negative = !bytes.empty() && (static_cast<uint8_t>(bytes.back()) & 0x80) != 0;
    int64_t value = negative ? -1 : 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    push_integer(value);
  }

  void push_global() {
    const std::string_view module = take_line();
    const std::string_view name = take_line();
    // Module, line end and name are contiguous in the pickle, which is the form of a symbol.
    push({.kind = PickleKind::symbol, .text = {module.data(), module.size() + 1 + name.size()}});
  }

  /// STACK_GLOBAL: module and name are texts of their own.
  void push_stack_global() {
    const std::vector<PickleId> names = pop_last(2);
    for (const PickleId each : names)
      if (heap_[each].kind != PickleKind::text) refuse("a global whose name is no text");
    push({.kind = PickleKind::symbol, .text = heap_.symbol(heap_[names[0]].text, heap_[names[1]].text)});
  }

  void push_container(PickleKind kind, const std::vector<PickleId>& items) {
    const PickleId container = heap_.add({.kind = kind});
    for (const PickleId item : items) heap_.append(container, item);
    push(container);
  }

  /// Appends to the container on top of the stack. An object that is filled like a dict becomes
  /// one; other objects keep nothing.
  void append_to(PickleKind kind, std::string_view what, const std::vector<PickleId>& items) {
    expect(1);
    PickleValue& filled = heap_[stack_.back()];
    if (filled.kind == PickleKind::object && kind == PickleKind::dict)
      filled.kind = PickleKind::dict;
    else if (filled.kind == PickleKind::object)
      return;
    const PickleId container = top(kind, what);
    if (kind == PickleKind::dict && items.size() % 2 != 0) refuse("a key has no value");
    for (const PickleId item : items) heap_.append(container, item);
  }

  void remember(uint32_t place) {
    expect(1);
    if (memo_.size() >= most_values) refuse("it remembers more values than any state dict");
    memo_[place] = stack_.back();
  }

  void recall(uint32_t place) {
    const auto found = memo_.find(place);
    if (found == memo_.end()) refuse("it recalls value {}, which it did not remember", place);
    push(found->second);
  }

  void call() {
    const PickleId arguments = pop();
    const PickleId callable = pop();
    if (heap_[arguments].kind != PickleKind::tuple) refuse("arguments that are no tuple");
    // getattr() of a class makes an object here; calling that makes an object, too.
    if (heap_[callable].kind == PickleKind::object)
      return push({.kind = PickleKind::object, .text = heap_[callable].text});
    if (heap_[callable].kind != PickleKind::symbol) refuse("it calls something that is no global");
    push(actions_.call(heap_[callable].text, arguments));
  }

  void call_with_keywords() {
    if (heap_[pop()].kind != PickleKind::dict) refuse("keywords that are no dict");
    call();
  }

  void build() {
    const PickleId state = pop();
    expect(1);
    if (heap_[stack_.back()].kind != PickleKind::object) actions_.build(stack_.back(), state);
  }

  PickleSource& source_;
  PickleHeap& heap_;
  PickleActions& actions_;
  size_t opcode_at_ = 0;
  std::vector<PickleId> stack_;
  std::vector<size_t> marks_;  ///< height of the stack at each
  std::unordered_map<uint32_t, PickleId> memo_;
};

}  // namespace

PickleId PickleHeap::add(PickleValue value) {
  if (values_.size() >= most_values)
    fail<FormatError>("{}: broken pickle: more than {} values, no state dict has as many", name_, most_values);
  values_.push_back(std::move(value));
  return static_cast<PickleId>(values_.size() - 1);
}

void PickleHeap::append(PickleId container, PickleId item) {
  if (++references_ > most_references)
    fail<FormatError>("{}: broken pickle: more than {} references between values, no state dict has as many", name_,
                      most_references);
  values_[container].items.push_back(item);
}

std::string_view PickleHeap::symbol(std::string_view module, std::string_view name) {
  constexpr size_t longest = 1024, most = 4096;
  if (module.size() + name.size() > longest || symbols_.size() >= most)
    fail<FormatError>("{}: broken pickle: a global's name of {} bytes, or more than {} of them", name_,
                      module.size() + name.size(), most);
  return *symbols_.insert(fmt::format("{}\n{}", module, name)).first;
}

PickleId run_pickle(PickleSource& source, PickleHeap& heap, PickleActions& actions) {
  return PickleMachine(source, heap, actions).run();
}

}  // namespace nibblenet
