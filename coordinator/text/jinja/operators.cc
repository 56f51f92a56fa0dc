#include "coordinator/text/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/text_search.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

absl::Status Overflow() {
  return absl::InvalidArgumentError("an integer does not fit in 128 bits");
}

const char* SymbolOf(Op op) {
  static constexpr const char* kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<int>(op)];
}

absl::Status Unsupported(Op op, const Value& left, const Value& right) {
  return absl::InvalidArgumentError(absl::StrCat("unsupported operand type(s) for ", SymbolOf(op),
                                                 ": '", TypeName(left), "' and '", TypeName(right),
                                                 "'"));
}

absl::StatusOr<Value> IntegerPower(Int base, Int exponent) {
  Int result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return Overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow();
  }
  return Value::Integer(result);
}

absl::StatusOr<Value> OnIntegers(Op op, Int left, Int right) {
  Int result = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(left, right, &result)) return Overflow();
      return Value::Integer(result);
    case Op::kSubtract:
      if (__builtin_sub_overflow(left, right, &result)) return Overflow();
      return Value::Integer(result);
    case Op::kMultiply:
      if (__builtin_mul_overflow(left, right, &result)) return Overflow();
      return Value::Integer(result);
    default:
      break;
  }
  if (op == Op::kPower) return IntegerPower(left, right);
  if (right == 0) return absl::InvalidArgumentError("integer division or modulo by zero");
  if (right == -1) {  // the one quotient that overflows
    if (op == Op::kModulo) return Value::Integer(0);
    if (__builtin_sub_overflow(Int{0}, left, &result)) return Overflow();
    return Value::Integer(result);
  }
  const Int remainder = left % right;
  const bool rounds_down = remainder != 0 && (remainder < 0) != (right < 0);
  if (op == Op::kModulo) return Value::Integer(rounds_down ? remainder + right : remainder);
  return Value::Integer(left / right - (rounds_down ? 1 : 0));
}

absl::StatusOr<Value> OnFloats(Op op, double left, double right) {
  switch (op) {
    case Op::kAdd:
      return Value::Float(left + right);
    case Op::kSubtract:
      return Value::Float(left - right);
    case Op::kMultiply:
      return Value::Float(left * right);
    case Op::kPower: {
      if (left == 0 && right < 0) {
        return absl::InvalidArgumentError("0.0 cannot be raised to a negative power");
      }
      const double power = std::pow(left, right);
      if (std::isfinite(left) && std::isfinite(right) && !std::isfinite(power)) {
        return absl::InvalidArgumentError("the power is no finite real number");
      }
      return Value::Float(power);
    }
    default:
      break;
  }
  if (right == 0) return absl::InvalidArgumentError("float division by zero");
  if (op == Op::kDivide) return Value::Float(left / right);
  // As CPython's float_divmod.
  double remainder = std::fmod(left, right);
  double quotient = (left - remainder) / right;
  if (remainder == 0) {
    remainder = std::copysign(0.0, right);
  } else if ((right < 0) != (remainder < 0)) {
    remainder += right;
    quotient -= 1;
  }
  if (op == Op::kModulo) return Value::Float(remainder);
  if (quotient == 0) return Value::Float(std::copysign(0.0, left / right));
  const double floor = std::floor(quotient);
  return Value::Float(quotient - floor > 0.5 ? floor + 1 : floor);
}

absl::StatusOr<Value> OnNumbers(Op op, const Value& left, const Value& right) {
  if (left.is_integral() && right.is_integral()) {
    if (op == Op::kDivide && right.integer() == 0) {
      return absl::InvalidArgumentError("division by zero");
    }
    const bool is_whole = op != Op::kDivide && !(op == Op::kPower && right.integer() < 0);
    if (is_whole) return OnIntegers(op, left.integer(), right.integer());
  }
  return OnFloats(op, left.real(), right.real());
}

absl::StatusOr<Value> AddTexts(const Value& left, const Value& right, Heap& heap) {
  const bool safe = left.is_safe() || right.is_safe();
  RETURN_IF_ERROR(heap.CheckBytes(left.text().size() + right.text().size()));
  std::string text;
  text.reserve(left.text().size() + right.text().size());
  text += safe && !left.is_safe() ? EscapeHtml(left.text()) : left.text();
  text += safe && !right.is_safe() ? EscapeHtml(right.text()) : right.text();
  return heap.String(std::move(text), safe);
}

absl::StatusOr<Value> AddSequences(const Value& left, const Value& right, Heap& heap) {
  std::vector<Value> items = left.items();
  items.insert(items.end(), right.items().begin(), right.items().end());
  RETURN_IF_ERROR(heap.StepItems(items.size()));
  return left.kind() == Kind::kList ? heap.List(std::move(items)) : heap.Tuple(std::move(items));
}

absl::StatusOr<Value> Repeat(const Value& part, Int count, Heap& heap) {
  if (count < 0) count = 0;
  const uint64_t unit = part.is_string() ? part.text().size() : part.items().size() * sizeof(Value);
  if (unit == 0) return part;
  // More would overflow the product, and any budget.
  constexpr Int kMost = Int{1} << 62;
  const uint64_t times = static_cast<uint64_t>(std::min(count, kMost));
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(unit, times, &bytes)) bytes = UINT64_MAX;
  RETURN_IF_ERROR(heap.CheckBytes(bytes));
  if (part.is_string()) {
    std::string text;
    text.reserve(bytes);
    for (uint64_t i = 0; i < times; ++i) text += part.text();
    return heap.String(std::move(text), part.is_safe());
  }
  std::vector<Value> items;
  for (uint64_t i = 0; i < times; ++i) {
    items.insert(items.end(), part.items().begin(), part.items().end());
  }
  return part.kind() == Kind::kList ? heap.List(std::move(items)) : heap.Tuple(std::move(items));
}

bool CanRepeat(const Value& value) {
  return value.is_string() || value.is_sequence();
}

}  // namespace

absl::StatusOr<Value> Arithmetic(Op op, const Value& left, const Value& right, Heap& heap) {
  if (left.is_undefined()) return absl::InvalidArgumentError(left.text());
  if (op == Op::kModulo && left.is_string()) return PercentFormat(left, right, heap);
  if (right.is_undefined()) return absl::InvalidArgumentError(right.text());
  if (left.is_number() && right.is_number()) return OnNumbers(op, left, right);
  if (op == Op::kAdd) {
    if (left.is_string() && right.is_string()) return AddTexts(left, right, heap);
    if (left.is_sequence() && left.kind() == right.kind()) {
      return AddSequences(left, right, heap);
    }
  }
  if (op == Op::kMultiply) {
    if (CanRepeat(left) && right.is_integral()) return Repeat(left, right.integer(), heap);
    if (CanRepeat(right) && left.is_integral()) return Repeat(right, left.integer(), heap);
  }
  return Unsupported(op, left, right);
}

absl::StatusOr<Value> Signed(bool negative, const Value& operand) {
  if (operand.is_undefined()) return absl::InvalidArgumentError(operand.text());
  if (operand.kind() == Kind::kFloat) {
    return Value::Float(negative ? -operand.real() : operand.real());
  }
  if (!operand.is_integral()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bad operand type for unary ", negative ? "-" : "+", ": '", TypeName(operand), "'"));
  }
  if (!negative) return Value::Integer(operand.integer());
  return OnIntegers(Op::kSubtract, 0, operand.integer());
}

absl::StatusOr<bool> Comparison(Op op, const Value& left, const Value& right, Heap& heap) {
  switch (op) {
    case Op::kEqual:
    case Op::kNotEqual:
      RETURN_IF_ERROR(heap.Step(std::min(left.weight(), right.weight())));
      return IsEqual(left, right) == (op == Op::kEqual);
    case Op::kLess:
      return IsLess(left, right, heap);
    case Op::kGreater:
      return IsLess(right, left, heap);
    case Op::kLessEqual:
    case Op::kGreaterEqual: {
      const bool less_equal = op == Op::kLessEqual;
      ASSIGN_OR_RETURN(const bool less,
                       less_equal ? IsLess(left, right, heap) : IsLess(right, left, heap));
      return less || IsEqual(left, right);
    }
    case Op::kIn:
      return Contains(right, left, heap);
    case Op::kNotIn: {
      ASSIGN_OR_RETURN(const bool found, Contains(right, left, heap));
      return !found;
    }
    default:
      return Unsupported(op, left, right);
  }
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Heap& heap) {
  if (container.is_string()) {
    if (!item.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("'in <string>' requires string as left operand, not ", TypeName(item)));
    }
    RETURN_IF_ERROR(heap.StepBytes(container.text().size()));
    return FindText(container.text(), item.text()) != std::string::npos;
  }
  if (container.is_dict()) {
    RETURN_IF_ERROR(heap.Step(item.weight()));
    if (!IsHashable(item)) {
      return absl::InvalidArgumentError(absl::StrCat("unhashable type: '", TypeName(item), "'"));
    }
    return container.dict().Find(item) != nullptr;
  }
  const bool is_list = container.is_sequence();
  std::vector<Value> made;
  if (!is_list) {
    ASSIGN_OR_RETURN(made, ItemsOf(container, heap));
  }
  for (const Value& other : is_list ? container.items() : made) {
    RETURN_IF_ERROR(heap.Step(std::min(item.weight(), other.weight())));
    if (IsEqual(item, other)) return true;
  }
  return false;
}

absl::StatusOr<Value> ItemAt(const Value& object, const Value& index, Heap& heap) {
  if (object.is_undefined()) return absl::InvalidArgumentError(object.text());
  if (object.is_dict()) {
    RETURN_IF_ERROR(heap.Step(index.weight()));
    const Value* found = object.dict().Find(index);
    return found == nullptr ? Value() : *found;
  }
  const bool is_indexed =
      object.is_sequence() || object.is_string() || object.kind() == Kind::kRange;
  if (!is_indexed || !index.is_integral()) return Value();
  const int64_t length = *LengthOf(object);
  const Int wanted = index.integer() < 0 ? index.integer() + length : index.integer();
  if (wanted < 0 || wanted >= length) return Value();
  const auto at = static_cast<int64_t>(wanted);
  if (object.is_sequence()) return object.items()[at];
  if (object.is_string()) return SliceOf(object, {at, 1, 1}, heap);
  const auto& range = object.As<RangeObject>();
  return Value::Integer(range.start + at * range.step);
}

namespace {

absl::StatusOr<Value> SliceOfText(const Value& object, const SliceIndices& indices, Heap& heap) {
  const std::string& text = object.text();
  const bool is_ascii = static_cast<size_t>(object.text_length()) == text.size();
  RETURN_IF_ERROR(heap.StepBytes(is_ascii ? static_cast<uint64_t>(indices.count) : text.size()));
  std::string part;
  if (indices.step == 1) {
    const size_t begin = OffsetOf(text, indices.start, is_ascii);
    const std::string_view rest = std::string_view(text).substr(begin);
    part = rest.substr(0, OffsetOf(rest, indices.count, is_ascii));
  } else if (is_ascii) {
    for (int64_t i = 0; i < indices.count; ++i) part += text[indices.start + i * indices.step];
  } else {
    std::vector<size_t> offsets;
    for (size_t i = 0; i < text.size(); (void)NextCodePoint(text, &i)) offsets.push_back(i);
    RETURN_IF_ERROR(heap.CheckBytes(offsets.size() * sizeof(size_t)));
    for (int64_t i = 0; i < indices.count; ++i) {
      const size_t begin = offsets[indices.start + i * indices.step];
      size_t end = begin;
      (void)NextCodePoint(text, &end);
      part += text.substr(begin, end - begin);
    }
  }
  return heap.String(std::move(part), object.is_safe());
}

}  // namespace

absl::StatusOr<Value> SliceOf(const Value& object, const SliceIndices& indices, Heap& heap) {
  if (object.is_string()) return SliceOfText(object, indices, heap);
  if (object.kind() == Kind::kRange) {
    const auto& range = object.As<RangeObject>();
    RangeObject part;
    part.start = range.start + indices.start * range.step;
    part.step = range.step * indices.step;
    part.length = indices.count;
    part.stop = part.start + part.length * part.step;
    return heap.Range(part);
  }
  RETURN_IF_ERROR(heap.StepItems(static_cast<uint64_t>(indices.count)));
  std::vector<Value> items;
  items.reserve(indices.count);
  for (int64_t i = 0; i < indices.count; ++i) {
    items.push_back(object.items()[indices.start + i * indices.step]);
  }
  return object.kind() == Kind::kList ? heap.List(std::move(items)) : heap.Tuple(std::move(items));
}

}  // namespace pergola::jinja
