#include "coordinator/text/jinja/value_tests.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/text_of.h"

namespace pergola::jinja {
namespace {

bool IsCallable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kMacro:
    case Kind::kFunction:
    case Kind::kMethod:
    case Kind::kJoiner:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

// As `is` in Python: of objects the same one, of the values that exist once the same.
bool IsSame(const Value& left, const Value& right) {
  if (left.kind() != right.kind()) return false;
  return left.object() != nullptr ? left.object() == right.object() : IsEqual(left, right);
}

bool HasItems(const Value& value) {
  return value.is_undefined() || value.is_sequence() || value.is_string() || value.is_dict() ||
         value.kind() == Kind::kRange;
}

using Plain = bool (*)(const Value&);

const std::map<std::string_view, Plain>& PlainTests() {
  static const std::map<std::string_view, Plain> kTests = {
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"boolean", [](const Value& v) { return v.kind() == Kind::kBool; }},
      {"true", [](const Value& v) { return v.kind() == Kind::kBool && v.boolean(); }},
      {"false", [](const Value& v) { return v.kind() == Kind::kBool && !v.boolean(); }},
      {"integer", [](const Value& v) { return v.kind() == Kind::kInt; }},
      {"float", [](const Value& v) { return v.kind() == Kind::kFloat; }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"string", [](const Value& v) { return v.is_string(); }},
      {"mapping", [](const Value& v) { return v.is_dict(); }},
      {"iterable", IsIterable},
      {"sequence", HasItems},
      {"callable", IsCallable},
      {"escaped", [](const Value& v) { return v.is_safe(); }},
  };
  return kTests;
}

const std::map<std::string_view, Op>& Comparisons() {
  static const std::map<std::string_view, Op> kTests = {
      {"==", Op::kEqual},
      {"eq", Op::kEqual},
      {"equalto", Op::kEqual},
      {"!=", Op::kNotEqual},
      {"ne", Op::kNotEqual},
      {"<", Op::kLess},
      {"lt", Op::kLess},
      {"lessthan", Op::kLess},
      {"<=", Op::kLessEqual},
      {"le", Op::kLessEqual},
      {">", Op::kGreater},
      {"gt", Op::kGreater},
      {"greaterthan", Op::kGreater},
      {">=", Op::kGreaterEqual},
      {"ge", Op::kGreaterEqual},
      {"in", Op::kIn},
  };
  return kTests;
}

bool IsOtherTest(std::string_view name) {
  for (const std::string_view known :
       {"even", "odd", "divisibleby", "sameas", "lower", "upper", "filter", "test"}) {
    if (name == known) return true;
  }
  return false;
}

absl::StatusOr<bool> Divides(const Value& value, const Value& by, Heap& heap) {
  ASSIGN_OR_RETURN(const Value rest, Arithmetic(Op::kModulo, value, by, heap));
  return IsEqual(rest, Value::Integer(0));
}

absl::StatusOr<bool> ApplyOther(const std::string& name, const Value& value,
                                const Arguments& arguments, Heap& heap) {
  if (name == "divisibleby" || name == "sameas") {
    ASSIGN_OR_RETURN(const auto bound, BindArguments({name.c_str(), {"other"}, 1}, arguments));
    if (name == "sameas") return IsSame(value, bound[0]);
    return Divides(value, bound[0], heap);
  }
  RETURN_IF_ERROR(BindArguments({name.c_str(), {}}, arguments).status());
  if (name == "filter") return value.is_string() && IsFilter(value.text());
  if (name == "test") return value.is_string() && IsTest(value.text());
  if (name == "lower" || name == "upper") {
    ASSIGN_OR_RETURN(std::string text, TextOf(value, heap));
    const Value as_text = heap.String(std::move(text));
    ASSIGN_OR_RETURN(const Value result, CallStringMethod(as_text, "is" + name, {}, heap));
    return result.boolean();
  }
  const Value two = Value::Integer(2);
  ASSIGN_OR_RETURN(const Value rest, Arithmetic(Op::kModulo, value, two, heap));
  return IsEqual(rest, Value::Integer(name == "even" ? 0 : 1));
}

}  // namespace

bool IsTest(std::string_view name) {
  return PlainTests().count(name) > 0 || Comparisons().count(name) > 0 || IsOtherTest(name);
}

absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& value,
                               const Arguments& arguments, Heap& heap) {
  RETURN_IF_ERROR(heap.Step());
  if (const auto plain = PlainTests().find(name); plain != PlainTests().end()) {
    RETURN_IF_ERROR(BindArguments({name.c_str(), {}}, arguments).status());
    return plain->second(value);
  }
  if (const auto compare = Comparisons().find(name); compare != Comparisons().end()) {
    ASSIGN_OR_RETURN(const auto bound, BindArguments({name.c_str(), {"other"}, 1}, arguments));
    return Comparison(compare->second, value, bound[0], heap);
  }
  if (IsOtherTest(name)) return ApplyOther(name, value, arguments, heap);
  return absl::InvalidArgumentError(absl::StrCat("no test named '", name, "'"));
}

}  // namespace pergola::jinja
