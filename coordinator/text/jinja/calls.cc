// Calls: macros, the globals of a chat template, loops.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/evaluator.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/text_of.h"

namespace pergola::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // Jinja's sandbox allows no more items

}  // namespace

absl::StatusOr<Value> Evaluator::Call(const Value& callee, const Arguments& arguments) {
  switch (callee.kind()) {
    case Kind::kUndefined:
      return absl::InvalidArgumentError(callee.text());
    case Kind::kMacro:
      return CallMacro(callee.As<MacroObject>(), arguments);
    case Kind::kFunction:
      return CallGlobal(callee.As<FunctionObject>().name, arguments);
    case Kind::kMethod: {
      const auto& method = callee.As<MethodObject>();
      if (method.receiver.kind() == Kind::kLoop) {
        return CallLoopMethod(method.receiver.Mutable<LoopObject>(), method.name, arguments);
      }
      return CallMethod(method.receiver, method.name, arguments, heap_);
    }
    case Kind::kJoiner: {
      auto& joiner = callee.Mutable<JoinerObject>();
      return heap_.String(std::exchange(joiner.used, true) ? joiner.separator : "");
    }
    case Kind::kLoop:
      return absl::InvalidArgumentError("recursive loops are not supported");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("'", TypeName(callee), "' object is not callable"));
  }
}

absl::StatusOr<Value> Evaluator::CallMacro(const MacroObject& macro, Arguments arguments) {
  return RunFunction(*macro.function, macro.outer, std::move(arguments));
}

absl::StatusOr<Value> Evaluator::RunFunction(const Function& function,
                                             std::shared_ptr<Variables> outer,
                                             Arguments arguments) {
  auto variables = std::make_shared<Variables>();
  variables->slots.resize(function.slot_count);
  variables->outer = std::move(outer);
  heap_.Own(variables.get(), variables->slots.size() * sizeof(Value));
  (void)heap_.StepItems(variables->slots.size());
  std::shared_ptr<Variables> caller = std::exchange(variables_, variables);
  const int line = line_;
  std::string text;
  absl::Status status = BindMacro(function, std::move(arguments));
  if (status.ok()) status = Capture(function.body, &text).status();
  if (status.ok()) line_ = line;
  variables_ = std::move(caller);
  // A macro that was made inside may refer to it, and be held by it.
  if (variables.use_count() > 1) heap_.Keep(std::move(variables));
  RETURN_IF_ERROR(status);
  return heap_.String(std::move(text));
}

// Sets the parameters in the variables of the call.
absl::Status Evaluator::BindMacro(const Function& function, Arguments arguments) {
  EnterScope(function.scope);
  const size_t count = function.parameters.size();
  const auto take_keyword = [&arguments](std::string_view name) {
    for (auto it = arguments.keyword.begin(); it != arguments.keyword.end(); ++it) {
      if (it->first != name) continue;
      Value value = std::move(it->second);
      arguments.keyword.erase(it);
      return value;
    }
    return Value();
  };
  std::vector<Value>& slots = variables_->slots;
  for (size_t i = 0; i < count; ++i) {
    slots[function.parameter_slots[i]] = i < arguments.positional.size()
                                             ? arguments.positional[i]
                                             : take_keyword(function.parameters[i]);
  }
  if (function.caller_slot >= 0) {
    Value caller = take_keyword("caller");
    if (caller.is_missing() || caller.is_none()) caller = heap_.Undefined("No caller defined");
    slots[function.caller_slot] = std::move(caller);
  }
  if (function.kwargs_slot >= 0) {
    auto rest = std::make_shared<DictObject>();
    for (auto& [name, value] : arguments.keyword) rest->Set(heap_.String(name), value);
    slots[function.kwargs_slot] = heap_.Dict(std::move(rest));
  } else if (!arguments.keyword.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("macro '", function.name,
                                                   "' takes no keyword argument '",
                                                   arguments.keyword[0].first, "'"));
  }
  if (function.varargs_slot >= 0) {
    const size_t taken = std::min(count, arguments.positional.size());
    slots[function.varargs_slot] = heap_.Tuple(
        {arguments.positional.begin() + static_cast<int64_t>(taken), arguments.positional.end()});
  } else if (arguments.positional.size() > count) {
    return absl::InvalidArgumentError(
        absl::StrCat("macro '", function.name, "' takes not more than ", count, " argument(s)"));
  }
  const size_t first_default = count - function.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    Value value = slots[function.parameter_slots[i]];
    if (!value.is_missing()) continue;
    if (i < first_default) {
      value = heap_.Undefined(
          absl::StrCat("parameter '", function.parameters[i], "' was not provided"));
    } else {
      ASSIGN_OR_RETURN(value, Evaluate(*function.defaults[i - first_default]));
    }
    slots[function.parameter_slots[i]] = std::move(value);
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::CallGlobal(const std::string& name, const Arguments& arguments) {
  if (name == "raise_exception") {
    ASSIGN_OR_RETURN(const auto bound,
                     BindArguments({"raise_exception", {"message"}, 1}, arguments));
    ASSIGN_OR_RETURN(const std::string message, TextOf(bound[0], heap_));
    return absl::InvalidArgumentError(absl::StrCat("raised: ", message));
  }
  if (name == "range") return Range(arguments);
  if (name == "namespace") return Namespace(arguments);
  if (name == "strftime_now") return TimeText(arguments);
  if (name == "dict") {
    ASSIGN_OR_RETURN(auto dict, DictOf(arguments));
    return heap_.Dict(std::move(dict));
  }
  if (name == "dict.fromkeys") {
    ASSIGN_OR_RETURN(const auto bound,
                     BindArguments({"fromkeys", {"iterable", "value"}, 1, false}, arguments));
    ASSIGN_OR_RETURN(const auto keys, ItemsOf(bound[0], heap_));
    auto dict = std::make_shared<DictObject>();
    for (const Value& key : keys) {
      RETURN_IF_ERROR(heap_.Step(key.weight()));
      if (!IsHashable(key)) {
        return absl::InvalidArgumentError(absl::StrCat("unhashable type: '", TypeName(key), "'"));
      }
      dict->Set(key, bound[1].is_missing() ? Value::None() : bound[1]);
    }
    return heap_.Dict(std::move(dict));
  }
  if (name == "joiner") {
    ASSIGN_OR_RETURN(const auto bound, BindArguments({"joiner", {"sep"}}, arguments));
    ASSIGN_OR_RETURN(std::string separator, StringOr(bound[0], ", ", "joiner"));
    return heap_.Joiner(std::move(separator));
  }
  if (!arguments.keyword.empty() || arguments.positional.empty()) {
    return absl::InvalidArgumentError("cycler expects at least one item and no keywords");
  }
  return heap_.Cycler(arguments.positional);
}

absl::StatusOr<Value> Evaluator::Range(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BindArguments({"range", {"start", "stop", "step"}, 1, false}, arguments));
  const bool only_stop = bound[1].is_missing();
  RangeObject range;
  ASSIGN_OR_RETURN(range.start, IntegerOr(only_stop ? Value() : bound[0], 0, "range"));
  ASSIGN_OR_RETURN(range.stop, IntegerOr(only_stop ? bound[0] : bound[1], 0, "range"));
  ASSIGN_OR_RETURN(range.step, IntegerOr(bound[2], 1, "range"));
  for (const Int bound_value : {range.start, range.stop, range.step}) {
    if (bound_value > INT64_MAX || bound_value < INT64_MIN) {
      return absl::InvalidArgumentError("range: an argument does not fit in 64 bits");
    }
  }
  if (range.step == 0) return absl::InvalidArgumentError("range() arg 3 must not be zero");
  const Int distance = range.step > 0 ? range.stop - range.start : range.start - range.stop;
  const Int stride = range.step > 0 ? range.step : -range.step;
  const Int length = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  if (length > kMaxRange) {
    return absl::InvalidArgumentError(
        absl::StrCat("range too big: ", TextOfInt(length), " items, the limit is ", kMaxRange));
  }
  range.length = static_cast<int64_t>(length);
  return heap_.Range(range);
}

absl::StatusOr<std::shared_ptr<DictObject>> Evaluator::DictOf(const Arguments& arguments) {
  auto dict = std::make_shared<DictObject>();
  const auto set = [&](const Value& key, const Value& value) -> absl::Status {
    RETURN_IF_ERROR(heap_.Step(key.weight()));
    if (!IsHashable(key)) {
      return absl::InvalidArgumentError(absl::StrCat("unhashable type: '", TypeName(key), "'"));
    }
    dict->Set(key, value);
    return absl::OkStatus();
  };
  if (arguments.positional.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("dict expected at most 1 argument, got ", arguments.positional.size()));
  }
  if (!arguments.positional.empty() && arguments.positional[0].is_dict()) {
    for (const auto& [key, value] : arguments.positional[0].dict().entries()) {
      RETURN_IF_ERROR(set(key, value));
    }
  } else if (!arguments.positional.empty()) {
    ASSIGN_OR_RETURN(const auto pairs, ItemsOf(arguments.positional[0], heap_));
    for (const Value& pair : pairs) {
      ASSIGN_OR_RETURN(const auto parts, ItemsOf(pair, heap_));
      if (parts.size() != 2) {
        return absl::InvalidArgumentError(absl::StrCat(
            "a dictionary update sequence element has length ", parts.size(), "; 2 is required"));
      }
      RETURN_IF_ERROR(set(parts[0], parts[1]));
    }
  }
  for (const auto& [name, value] : arguments.keyword) {
    RETURN_IF_ERROR(set(heap_.String(name), value));
  }
  return dict;
}

absl::StatusOr<Value> Evaluator::Namespace(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto dict, DictOf(arguments));
  for (const auto& [key, value] : dict->entries()) {
    if (!key.is_string() || key.text().empty() || key.text()[0] == '_') {
      std::string name;
      RETURN_IF_ERROR(AppendRepr(key, heap_, &name));
      return absl::InvalidArgumentError(
          absl::StrCat("cannot store the attribute ", name, " on a namespace"));
    }
  }
  return heap_.Namespace(dict);
}

absl::StatusOr<Value> Evaluator::TimeText(const Arguments& arguments) {
  constexpr size_t kMaxFormat = 256;
  ASSIGN_OR_RETURN(const auto bound, BindArguments({"strftime_now", {"format"}, 1}, arguments));
  ASSIGN_OR_RETURN(const std::string text, StringOr(bound[0], "", "strftime_now"));
  if (text.size() > kMaxFormat) {
    return absl::InvalidArgumentError(absl::StrCat("strftime_now: the format has ", text.size(),
                                                   " bytes; the limit is ", kMaxFormat));
  }
  // Python's datetime fills in the fractions, and a time without zone has no zone's name. A blank
  // keeps the result from being empty, which strftime cannot tell from an error.
  std::string format = " ";
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '%' && i + 1 < text.size() ? text[i + 1] : '\0';
    if (next == 'f') {
      format += "000000";
    } else if (next == '%') {
      format += "%%";
    } else if (next != 'z' && next != 'Z') {
      format += text[i];
      continue;
    }
    ++i;
  }
  std::string out(64 * (format.size() + 1), '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &now_));
  return heap_.String(out.empty() ? out : out.substr(1));
}

absl::StatusOr<bool> Evaluator::Peek(LoopObject& loop) {
  if (!loop.after.is_missing()) return true;
  while (loop.position < loop.items.size()) {
    Value item = loop.items[loop.position++];
    if (loop.filter != nullptr) {
      std::shared_ptr<Variables> inside = std::exchange(variables_, loop.home);
      EnterScope(loop.filter->test_scope);
      const absl::Status assigned = Assign(*loop.filter->test_target, item);
      const auto passes =
          assigned.ok() ? Evaluate(*loop.filter->test) : absl::StatusOr<Value>(assigned);
      variables_ = std::move(inside);
      RETURN_IF_ERROR(passes.status());
      if (!IsTrue(*passes)) continue;
    }
    loop.after = std::move(item);
    return true;
  }
  return false;
}

// Moves the loop on; a missing value at its end.
absl::StatusOr<Value> Evaluator::NextOf(LoopObject& loop) {
  RETURN_IF_ERROR(heap_.Step());
  ASSIGN_OR_RETURN(const bool has_next, Peek(loop));
  if (!has_next) return Value();
  ++loop.index0;
  loop.before = std::exchange(loop.current, std::exchange(loop.after, Value()));
  return loop.current;
}

absl::StatusOr<Value> Evaluator::LoopAttribute(const Value& value, const std::string& name) {
  auto& loop = value.Mutable<LoopObject>();
  if (name == "index0") return Value::Integer(loop.index0);
  if (name == "index") return Value::Integer(loop.index0 + 1);
  if (name == "first") return Value::Bool(loop.index0 == 0);
  if (name == "depth" || name == "depth0") return Value::Integer(name == "depth" ? 1 : 0);
  if (name == "cycle" || name == "changed") return heap_.Method(value, name);
  if (name == "previtem") {
    return loop.index0 == 0 ? heap_.Undefined("there is no previous item") : loop.before;
  }
  if (name == "last" || name == "nextitem") {
    ASSIGN_OR_RETURN(const bool has_next, Peek(loop));
    if (name == "last") return Value::Bool(!has_next);
    return has_next ? loop.after : heap_.Undefined("there is no next item");
  }
  if (name != "length" && name != "revindex" && name != "revindex0") {
    return heap_.Undefined(absl::StrCat("'LoopContext' has no attribute '", name, "'"));
  }
  if (loop.filter != nullptr) {  // all items must pass the test before they can be counted
    std::vector<Value> passed(loop.items.begin(),
                              loop.items.begin() + static_cast<int64_t>(loop.index0) + 1);
    passed.resize(static_cast<size_t>(loop.index0) + 1);
    const size_t next = passed.size();
    for (;;) {
      ASSIGN_OR_RETURN(const bool has_next, Peek(loop));
      if (!has_next) break;
      passed.push_back(std::exchange(loop.after, Value()));
    }
    loop.items = std::move(passed);
    loop.position = next;
    loop.filter = nullptr;
  }
  const auto length = static_cast<int64_t>(loop.items.size());
  if (name == "length") return Value::Integer(length);
  return Value::Integer(length - loop.index0 - (name == "revindex" ? 0 : 1));
}

absl::StatusOr<Value> Evaluator::CallLoopMethod(LoopObject& loop, const std::string& name,
                                                const Arguments& arguments) {
  if (!arguments.keyword.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("loop.", name, " takes no keyword arguments"));
  }
  const auto& items = arguments.positional;
  if (name == "cycle") {
    if (items.empty()) return absl::InvalidArgumentError("no items for cycling given");
    return items[static_cast<size_t>(std::max<int64_t>(loop.index0, 0)) % items.size()];
  }
  Value seen = heap_.Tuple(items);
  RETURN_IF_ERROR(heap_.Step(seen.weight()));
  const bool changed = loop.last_changed.is_missing() || !IsEqual(loop.last_changed, seen);
  if (changed) loop.last_changed = std::move(seen);
  return Value::Bool(changed);
}

}  // namespace pergola::jinja
