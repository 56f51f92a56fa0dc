#include "coordinator/text/jinja/value.h"

#include <cmath>

#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"

namespace pergola::jinja {

const std::string& Value::text() const {
  return As<TextObject>().text;
}

int64_t Value::text_length() const {
  return As<TextObject>().length;
}

const std::vector<Value>& Value::items() const {
  return As<ListObject>().items;
}

const DictObject& Value::dict() const {
  return As<DictObject>();
}

namespace {

uint64_t HashOfText(std::string_view text) {
  return absl::Hash<absl::string_view>()(absl::string_view(text.data(), text.size()));
}

uint64_t HashOfInt(Int value) {
  return absl::Hash<std::pair<uint64_t, uint64_t>>()(
      {static_cast<uint64_t>(value), static_cast<uint64_t>(value >> 64)});
}

// Python compares what containers hold by identity first, so there a nan equals itself. It keeps
// many of them from being as many keys of one hash.
bool IsSameOrEqual(const Value& left, const Value& right) {
  if (left.kind() == Kind::kFloat && right.kind() == Kind::kFloat && std::isnan(left.real())) {
    return std::isnan(right.real());
  }
  return IsEqual(left, right);
}

}  // namespace

int64_t DictObject::IndexOf(const Value& key, uint64_t hash) const {
  if (entries_.size() <= kSearched) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (IsSameOrEqual(entries_[i].first, key)) return static_cast<int64_t>(i);
    }
    return -1;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    if (IsSameOrEqual(entries_[it->second].first, key)) return it->second;
  }
  return -1;
}

const Value* DictObject::Find(const Value& key) const {
  if (!IsHashable(key)) return nullptr;
  const int64_t found = IndexOf(key, HashOf(key));
  return found < 0 ? nullptr : &entries_[found].second;
}

const Value* DictObject::Find(std::string_view key) const {
  if (entries_.size() <= kSearched) {
    for (const auto& [name, value] : entries_) {
      if (name.is_string() && name.text() == key) return &value;
    }
    return nullptr;
  }
  const auto [begin, end] = index_.equal_range(HashOfText(key));
  for (auto it = begin; it != end; ++it) {
    const auto& [name, value] = entries_[it->second];
    if (name.is_string() && name.text() == key) return &value;
  }
  return nullptr;
}

void DictObject::Set(Value key, Value value) {
  const uint64_t hash = HashOf(key);
  const int64_t found = IndexOf(key, hash);
  if (found >= 0) {
    entries_[found].second = std::move(value);
    return;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() <= kSearched) return;
  if (!index_.empty()) {
    index_.emplace(hash, static_cast<uint32_t>(entries_.size() - 1));
    return;
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    index_.emplace(HashOf(entries_[i].first), static_cast<uint32_t>(i));
  }
}

const char* TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.is_safe() ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kView:
      switch (value.As<ViewObject>().part) {
        case ViewObject::Part::kKeys:
          return "dict_keys";
        case ViewObject::Part::kValues:
          return "dict_values";
        default:
          return "dict_items";
      }
    case Kind::kRange:
      return "range";
    case Kind::kGenerator:
      return "generator";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kMacro:
      return "Macro";
    case Kind::kFunction:
      return "function";
    case Kind::kMethod:
      return "builtin_function_or_method";
    case Kind::kCycler:
      return "Cycler";
    case Kind::kJoiner:
      return "Joiner";
  }
  return "object";
}

bool IsHashable(const Value& value) {
  switch (value.kind()) {
    case Kind::kList:
    case Kind::kDict:
    case Kind::kView:
      return false;
    case Kind::kTuple:
      for (const Value& item : value.items()) {
        if (!IsHashable(item)) return false;
      }
      return true;
    default:
      return true;
  }
}

uint64_t HashOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return HashOfInt(value.integer());
    case Kind::kFloat: {
      // Equal numbers of different types are equal keys.
      const double number = value.real();
      if (std::trunc(number) == number && std::fabs(number) < 1e38) {
        return HashOfInt(static_cast<Int>(number));
      }
      return std::isnan(number) ? 0 : absl::Hash<double>()(number);
    }
    case Kind::kString:
      return HashOfText(value.text());
    case Kind::kTuple: {
      uint64_t hash = value.items().size();
      for (const Value& item : value.items()) {
        hash = absl::Hash<std::pair<uint64_t, uint64_t>>()({hash, HashOf(item)});
      }
      return hash;
    }
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return static_cast<uint64_t>(value.kind());
    default:
      return absl::Hash<const void*>()(value.object());
  }
}

namespace {

bool AreEqualSequences(const std::vector<Value>& left, const std::vector<Value>& right) {
  if (left.size() != right.size()) return false;
  for (size_t i = 0; i < left.size(); ++i) {
    if (!IsSameOrEqual(left[i], right[i])) return false;
  }
  return true;
}

bool AreEqualDicts(const DictObject& left, const DictObject& right) {
  if (left.entries().size() != right.entries().size()) return false;
  for (const auto& [key, value] : left.entries()) {
    const Value* other = right.Find(key);
    if (other == nullptr || !IsSameOrEqual(value, *other)) return false;
  }
  return true;
}

bool AreEqualNumbers(const Value& left, const Value& right) {
  if (left.is_integral() && right.is_integral()) return left.integer() == right.integer();
  if (left.kind() == Kind::kFloat && right.kind() == Kind::kFloat) {
    return left.real() == right.real();
  }
  // An integer beyond 2^53 has no equal double unless the double is exactly it.
  const Value& whole = left.is_integral() ? left : right;
  const double real = left.is_integral() ? right.real() : left.real();
  return std::trunc(real) == real && std::fabs(real) < 1e38 &&
         static_cast<Int>(real) == whole.integer();
}

}  // namespace

bool IsEqual(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) return AreEqualNumbers(left, right);
  if (left.kind() != right.kind()) return false;
  switch (left.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return left.text() == right.text();
    case Kind::kList:
    case Kind::kTuple:
      return left.object() == right.object() || AreEqualSequences(left.items(), right.items());
    case Kind::kDict:
      return left.object() == right.object() || AreEqualDicts(left.dict(), right.dict());
    case Kind::kRange: {
      const auto& a = left.As<RangeObject>();
      const auto& b = right.As<RangeObject>();
      if (a.length != b.length) return false;
      return a.length == 0 || (a.start == b.start && (a.length == 1 || a.step == b.step));
    }
    case Kind::kMethod: {
      const auto& a = left.As<MethodObject>();
      const auto& b = right.As<MethodObject>();
      return a.name == b.name && a.receiver.object() == b.receiver.object();
    }
    case Kind::kFunction:
      return left.As<FunctionObject>().name == right.As<FunctionObject>().name;
    default:
      return left.object() == right.object();
  }
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.real() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.dict().entries().empty();
    case Kind::kView:
      return IsTrue(value.As<ViewObject>().dict);
    case Kind::kRange:
      return value.As<RangeObject>().length != 0;
    default:
      return true;
  }
}

}  // namespace pergola::jinja
