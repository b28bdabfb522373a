#include "engine/io/pickle.h"

#include <cstring>
#include <unordered_map>

namespace nibblenet {
namespace {

// Limits for hostile files. A network of 1,000 layers with the state of its optimizer has 100,000
// values.
constexpr size_t most_values = size_t{1} << 20;
constexpr size_t most_references = size_t{1} << 22;

/// Opcodes, named as Python's pickletools does.
enum Opcode : uint8_t {
  MARK = '(',
  STOP = '.',
  BINFLOAT = 'G',
  BININT = 'J',
  BININT1 = 'K',
  BININT2 = 'M',
  POP = '0',
  POP_MARK = '1',
  BINBYTES = 'B',
  SHORT_BINBYTES = 'C',
  NONE = 'N',
  BINPERSID = 'Q',
  REDUCE = 'R',
  BINSTRING = 'T',
  SHORT_BINSTRING = 'U',
  BINUNICODE = 'X',
  EMPTY_LIST = ']',
  APPEND = 'a',
  BUILD = 'b',
  GLOBAL = 'c',
  APPENDS = 'e',
  BINGET = 'h',
  LONG_BINGET = 'j',
  BINPUT = 'q',
  LONG_BINPUT = 'r',
  SETITEM = 's',
  TUPLE = 't',
  SETITEMS = 'u',
  EMPTY_DICT = '}',
  EMPTY_TUPLE = ')',
  PROTO = 0x80,
  NEWOBJ = 0x81,
  TUPLE1 = 0x85,
  TUPLE2 = 0x86,
  TUPLE3 = 0x87,
  NEWTRUE = 0x88,
  NEWFALSE = 0x89,
  LONG1 = 0x8A,
  LONG4 = 0x8B,
  SHORT_BINUNICODE = 0x8C,
  BINUNICODE8 = 0x8D,
  BINBYTES8 = 0x8E,
  EMPTY_SET = 0x8F,
  ADDITEMS = 0x90,
  FROZENSET = 0x91,
  NEWOBJ_EX = 0x92,
  STACK_GLOBAL = 0x93,
  MEMOIZE = 0x94,
  FRAME = 0x95,
  BYTEARRAY8 = 0x96,
};

class PickleMachine {
 public:
  PickleMachine(PickleSource& source, PickleHeap& heap, PickleActions& actions)
      : source_(source), heap_(heap), actions_(actions) {}

  PickleId run() {
    while (true) {
      opcode_at_ = source_.position;
      const auto opcode = take<uint8_t>();
      if (opcode == STOP) return pop();
      if (!push_value(opcode) && !change_container(opcode) && !use_memo(opcode) && !act(opcode))
        refuse("opcode {:#04x} is none that torch.save writes for a state dict", opcode);
    }
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail<FormatError>("{}: broken pickle at byte {}: {}", source_.name, opcode_at_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  std::string_view take_bytes(size_t count) {
    if (count > source_.bytes.size() - source_.position)
      refuse("{} bytes should follow but only {} do; the file is cut off", count,
             source_.bytes.size() - source_.position);
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
    if (length == std::string_view::npos) refuse("a name has no end; the file is cut off");
    return take_bytes(length + 1).substr(0, length);
  }

  void push(PickleId id) {
    if (stack_.size() >= most_values) refuse("it holds more values than any state dict");
    stack_.push_back(id);
  }
  void push(PickleValue value) { push(heap_.add(std::move(value))); }
  void push_text(std::string_view text) { push({.kind = PickleKind::text, .text = text}); }
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

  /// Takes bytes after their length in 64 bits; take_bytes() refuses a length that is too large.
  std::string_view take_counted() { return take_bytes(static_cast<size_t>(take<uint64_t>())); }

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

  bool push_value(uint8_t opcode) {
    switch (opcode) {
      case NONE:
        push(PickleValue{});
        return true;
      case NEWTRUE:
      case NEWFALSE:
        push({.kind = PickleKind::boolean, .integer = opcode == NEWTRUE});
        return true;
      case BININT:
        push_integer(take<int32_t>());
        return true;
      case BININT1:
        push_integer(take<uint8_t>());
        return true;
      case BININT2:
        push_integer(take<uint16_t>());
        return true;
      case LONG1:
        push_long(take<uint8_t>());
        return true;
      case LONG4:
        push_long(take<uint32_t>());
        return true;
      case BINFLOAT:
        take_bytes(sizeof(double));
        push({.kind = PickleKind::real});
        return true;
      case BINUNICODE:
      case BINBYTES:
      case BINSTRING:
        push_text(take_bytes(take<uint32_t>()));
        return true;
      case SHORT_BINUNICODE:
      case SHORT_BINBYTES:
      case SHORT_BINSTRING:
        push_text(take_bytes(take<uint8_t>()));
        return true;
      case BINUNICODE8:
      case BINBYTES8:
      case BYTEARRAY8:
        push_text(take_counted());
        return true;
      case STACK_GLOBAL:
        push_stack_global();
        return true;
      case GLOBAL:
        push_global();
        return true;
      default:
        return false;
    }
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

  bool change_container(uint8_t opcode) {
    switch (opcode) {
      case MARK:
        if (marks_.size() >= most_values) refuse("it holds more marks than any state dict");
        marks_.push_back(stack_.size());
        return true;
      case EMPTY_LIST:
        push({.kind = PickleKind::list});
        return true;
      case EMPTY_DICT:
        push({.kind = PickleKind::dict});
        return true;
      case EMPTY_SET:
        push({.kind = PickleKind::set});
        return true;
      case EMPTY_TUPLE:
        push({.kind = PickleKind::tuple});
        return true;
      case TUPLE:
        push_container(PickleKind::tuple, pop_to_mark());
        return true;
      case TUPLE1:
      case TUPLE2:
      case TUPLE3:
        push_container(PickleKind::tuple, pop_last(opcode - TUPLE1 + 1U));
        return true;
      case FROZENSET:
        push_container(PickleKind::set, pop_to_mark());
        return true;
      case ADDITEMS:
        append_to(PickleKind::set, "set", pop_to_mark());
        return true;
      case POP:  // behind a value that holds itself
        pop();
        return true;
      case POP_MARK:
        pop_to_mark();
        return true;
      case APPEND:
        append_to(PickleKind::list, "list", pop_last(1));
        return true;
      case APPENDS:
        append_to(PickleKind::list, "list", pop_to_mark());
        return true;
      case SETITEM:
        append_to(PickleKind::dict, "dict", pop_last(2));
        return true;
      case SETITEMS:
        append_to(PickleKind::dict, "dict", pop_to_mark());
        return true;
      default:
        return false;
    }
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

  bool use_memo(uint8_t opcode) {
    switch (opcode) {
      case BINPUT:
        remember(take<uint8_t>());
        return true;
      case MEMOIZE:
        remember(static_cast<uint32_t>(memo_.size()));
        return true;
      case LONG_BINPUT:
        remember(take<uint32_t>());
        return true;
      case BINGET:
        recall(take<uint8_t>());
        return true;
      case LONG_BINGET:
        recall(take<uint32_t>());
        return true;
      default:
        return false;
    }
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

  bool act(uint8_t opcode) {
    switch (opcode) {
      case PROTO:
        take<uint8_t>();  // the opcodes that follow say what is needed
        return true;
      case FRAME:
        take<uint64_t>();  // how many bytes to read at once; what follows is read as it comes
        return true;
      case NEWOBJ_EX: {
        const PickleId keywords = pop();
        if (heap_[keywords].kind != PickleKind::dict) refuse("keywords that are no dict");
        call();
        return true;
      }
      case REDUCE:
      case NEWOBJ:
        call();
        return true;
      case BUILD: {
        const PickleId state = pop();
        expect(1);
        if (heap_[stack_.back()].kind != PickleKind::object) actions_.build(stack_.back(), state);
        return true;
      }
      case BINPERSID:
        push(actions_.load(pop()));
        return true;
      default:
        return false;
    }
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
