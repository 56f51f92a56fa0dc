// The values of a template: Python's, as far as chat templates meet them. A Value is small and
// shares its object; lists, dicts and texts never change once made, so they cannot form cycles.
// Not for what values do (operators.h, text_of.h, methods.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace pergola::jinja {

// Python's integers have no end; ours hold every 64-bit number of a JSON text, signed or not, and
// their products. What does not fit is an error, never a wrapped number.
using Int = __int128;

enum class Kind : uint8_t {
  kMissing,  // an unset variable; never the result of an expression
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kView,  // of a dict: keys(), values(), items()
  kRange,
  kGenerator,  // what filters like map() give: always true, read once, without a length
  kNamespace,
  kLoop,
  kMacro,
  kFunction,  // a global, by name
  kMethod,    // a method bound to its value
  kCycler,
  kJoiner,
};

// Counts the bytes of the objects of one rendering; outlives them.
struct MemoryAccount {
  uint64_t live_bytes = 0;
};

struct Object {
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() {
    if (account != nullptr) account->live_bytes -= bytes;
  }
  // Drops references to other values: only what can change can be part of a cycle.
  virtual void Clear() {}

  MemoryAccount* account = nullptr;  // null: part of a template or a context
  uint64_t bytes = 0;
  int depth = 0;  // of nested objects; bounded, so that no walk and no destructor recurses deep
  // Steps of a walk over the whole value. One list may hold another many times, so this can be
  // exponential in the memory used: walks ask first.
  uint64_t weight = 1;
};

struct TextObject;
struct ListObject;
struct DictObject;

class Value {
 public:
  Value() = default;  // missing
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value) {
    Value result(Kind::kBool);
    result.int_ = value ? 1 : 0;
    return result;
  }
  static Value Integer(Int value) {
    Value result(Kind::kInt);
    result.int_ = value;
    return result;
  }
  static Value Float(double value) {
    Value result(Kind::kFloat);
    result.float_ = value;
    return result;
  }
  Value(Kind kind, std::shared_ptr<const Object> object, bool safe = false)
      : kind_(kind), safe_(safe), object_(std::move(object)) {}

  Kind kind() const { return kind_; }
  bool is_missing() const { return kind_ == Kind::kMissing; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_dict() const { return kind_ == Kind::kDict; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }
  // Python's bool is an int.
  bool is_integral() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }
  bool is_safe() const { return safe_; }  // a text of markupsafe: adding to it escapes HTML

  // Each for its kind only.
  bool boolean() const { return int_ != 0; }
  Int integer() const { return int_; }
  double real() const { return kind_ == Kind::kFloat ? float_ : static_cast<double>(int_); }
  const std::string& text() const;          // of a string, and an undefined's message
  int64_t text_length() const;              // in code points
  const std::vector<Value>& items() const;  // of a list or a tuple
  const DictObject& dict() const;
  template <typename T>
  const T& As() const {
    return static_cast<const T&>(*object_);
  }
  // What changes: namespaces, loops, generators, cyclers and joiners.
  template <typename T>
  T& Mutable() const {
    return const_cast<T&>(static_cast<const T&>(*object_));
  }
  const Object* object() const { return object_.get(); }
  std::shared_ptr<const Object> shared_object() const { return object_; }
  int depth() const { return object_ == nullptr ? 0 : object_->depth; }
  uint64_t weight() const { return object_ == nullptr ? 1 : object_->weight; }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::kMissing;
  bool safe_ = false;
  union {
    Int int_ = 0;
    double float_;
  };
  std::shared_ptr<const Object> object_;
};

struct TextObject : Object {
  std::string text;    // valid UTF-8
  int64_t length = 0;  // code points; equal to text.size() if and only if the text is ASCII
};

struct ListObject : Object {
  std::vector<Value> items;
  bool group = false;  // a tuple of groupby(): its parts are called grouper and list
};

// Insertion order, the last value of equal keys wins at the place of the first.
struct DictObject : Object {
  // The value of `key`, or nullptr. Keys that cannot be hashed are never found.
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  void Set(Value key, Value value);
  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }

 private:
  int64_t IndexOf(const Value& key, uint64_t hash) const;

  // Few entries are searched faster than hashed.
  static constexpr size_t kSearched = 8;
  std::vector<std::pair<Value, Value>> entries_;
  std::unordered_multimap<uint64_t, uint32_t> index_;  // of all entries if more than kSearched
};

struct ViewObject : Object {
  enum class Part { kKeys, kValues, kItems };
  Value dict;
  Part part = Part::kKeys;
};

struct RangeObject : Object {
  Int start = 0, stop = 0, step = 1;
  int64_t length = 0;
};

struct GeneratorObject : Object {
  std::vector<Value> items;  // already read ones are missing
  size_t position = 0;
  absl::Status error;  // raised by the reader behind the last item
};

struct NamespaceObject : Object {
  void Clear() override { attributes = std::make_shared<DictObject>(); }
  std::shared_ptr<DictObject> attributes;  // by text
};

struct MethodObject : Object {
  Value receiver;
  std::string name;
};

struct FunctionObject : Object {
  std::string name;
};

struct CyclerObject : Object {
  void Clear() override { items.clear(); }
  std::vector<Value> items;
  size_t position = 0;
};

struct JoinerObject : Object {
  std::string separator;
  bool used = false;
};

// The arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

const char* TypeName(const Value& value);  // Python's: "str", "NoneType", ...
// Equality and hash as of Python's dict keys; IsHashable is false for lists, dicts and what holds
// one.
bool IsHashable(const Value& value);
uint64_t HashOf(const Value& value);
bool IsEqual(const Value& left, const Value& right);
bool IsTrue(const Value& value);

}  // namespace pergola::jinja
