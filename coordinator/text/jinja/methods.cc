#include "coordinator/text/jinja/methods.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/text_of.h"

namespace pergola::jinja {
namespace {

bool IsOneOf(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// As Python prints the type of `object` in "... has no attribute".
std::string OwnerOf(const Value& object) {
  if (object.is_none()) return "None";
  if (object.kind() == Kind::kNamespace) return "namespace object";
  return absl::StrCat(TypeName(object), " object");
}

Value Unsafe(const Value& object, std::string_view name, Heap& heap) {
  return heap.Undefined(absl::StrCat("access to attribute '", ToAbsl(name), "' of '",
                                     TypeName(object), "' object is unsafe."));
}

Value DictAttribute(const Value& object, std::string_view name, Heap& heap) {
  if (IsOneOf(name, {"get", "items", "keys", "values", "copy"})) {
    return heap.Method(object, std::string(name));
  }
  if (IsOneOf(name, {"clear", "pop", "popitem", "setdefault", "update"})) {
    return Unsafe(object, name, heap);
  }
  return {};
}

Value SequenceAttribute(const Value& object, std::string_view name, Heap& heap) {
  if (IsOneOf(name, {"index", "count"})) return heap.Method(object, std::string(name));
  if (object.kind() == Kind::kTuple) {
    if (!object.As<ListObject>().group) return {};
    if (name == "grouper") return object.items()[0];
    if (name == "list") return object.items()[1];
    return {};
  }
  if (name == "copy") return heap.Method(object, "copy");
  if (IsOneOf(name, {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"})) {
    return Unsafe(object, name, heap);
  }
  return {};
}

absl::StatusOr<Value> CallDictMethod(const Value& receiver, const std::string& name,
                                     const Arguments& arguments, Heap& heap) {
  if (name == "get") {
    ASSIGN_OR_RETURN(const auto bound,
                     BindArguments({"get", {"key", "default"}, 1, false}, arguments));
    if (!IsHashable(bound[0])) {
      return absl::InvalidArgumentError(
          absl::StrCat("unhashable type: '", TypeName(bound[0]), "'"));
    }
    RETURN_IF_ERROR(heap.Step(bound[0].weight()));
    const Value* found = receiver.dict().Find(bound[0]);
    if (found != nullptr) return *found;
    return bound[1].is_missing() ? Value::None() : bound[1];
  }
  RETURN_IF_ERROR(BindArguments({name.c_str(), {}, 0, false}, arguments).status());
  if (name == "copy") return receiver;
  if (name == "keys") return heap.View(receiver, ViewObject::Part::kKeys);
  if (name == "values") return heap.View(receiver, ViewObject::Part::kValues);
  return heap.View(receiver, ViewObject::Part::kItems);
}

absl::StatusOr<Value> CallSequenceMethod(const Value& receiver, const std::string& name,
                                         const Arguments& arguments, Heap& heap) {
  if (name == "copy") {
    RETURN_IF_ERROR(BindArguments({"copy", {}, 0, false}, arguments).status());
    return receiver;
  }
  const bool counts = name == "count";
  ASSIGN_OR_RETURN(const auto bound,
                   BindArguments({name.c_str(), {"value", "start", "stop"}, 1, false}, arguments));
  ASSIGN_OR_RETURN(
      const SliceIndices indices,
      ResolveSlice(bound[1], bound[2], Value(), static_cast<int64_t>(receiver.items().size())));
  int64_t count = 0;
  for (int64_t i = indices.start; i < indices.start + indices.count; ++i) {
    RETURN_IF_ERROR(heap.Step(bound[0].weight()));
    if (!IsEqual(receiver.items()[i], bound[0])) continue;
    if (!counts) return Value::Integer(i);
    ++count;
  }
  if (counts) return Value::Integer(count);
  return absl::InvalidArgumentError("the value is not in the list");
}

absl::StatusOr<Value> CallCyclerMethod(CyclerObject& cycler, const std::string& name,
                                       const Arguments& arguments) {
  RETURN_IF_ERROR(BindArguments({name.c_str(), {}, 0, false}, arguments).status());
  if (name == "reset") {
    cycler.position = 0;
    return Value::None();
  }
  Value item = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return item;
}

// Names of numbers' and other objects' attributes have no use in a template: they are undefined.
Value OtherAttribute(const Value& object, std::string_view name, Heap& heap) {
  if (object.kind() == Kind::kCycler) {
    const auto& cycler = object.As<CyclerObject>();
    if (name == "current") return cycler.items[cycler.position];
    if (IsOneOf(name, {"next", "reset"})) return heap.Method(object, std::string(name));
  }
  if (object.kind() == Kind::kRange) {
    const auto& range = object.As<RangeObject>();
    if (name == "start") return Value::Integer(range.start);
    if (name == "stop") return Value::Integer(range.stop);
    if (name == "step") return Value::Integer(range.step);
  }
  if (object.kind() == Kind::kFunction && object.As<FunctionObject>().name == "dict" &&
      name == "fromkeys") {
    return heap.Function("dict.fromkeys");
  }
  return {};
}

}  // namespace

Value BuiltinAttribute(const Value& object, std::string_view name, Heap& heap) {
  switch (object.kind()) {
    case Kind::kString:
      return IsStringMethod(name) ? heap.Method(object, std::string(name)) : Value();
    case Kind::kDict:
      return DictAttribute(object, name, heap);
    case Kind::kList:
    case Kind::kTuple:
      return SequenceAttribute(object, name, heap);
    case Kind::kNamespace: {
      const Value* found = object.As<NamespaceObject>().attributes->Find(name);
      return found == nullptr ? Value() : *found;
    }
    default:
      return OtherAttribute(object, name, heap);
  }
}

absl::StatusOr<Value> CallMethod(const Value& receiver, const std::string& name,
                                 const Arguments& arguments, Heap& heap) {
  switch (receiver.kind()) {
    case Kind::kString:
      return CallStringMethod(receiver, name, arguments, heap);
    case Kind::kDict:
      return CallDictMethod(receiver, name, arguments, heap);
    case Kind::kList:
    case Kind::kTuple:
      return CallSequenceMethod(receiver, name, arguments, heap);
    case Kind::kCycler:
      return CallCyclerMethod(receiver.Mutable<CyclerObject>(), name, arguments);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("'", TypeName(receiver), "' object has no method '", name, "'"));
  }
}

absl::StatusOr<Value> AttributeOf(const Value& object, const std::string& name, Heap& heap) {
  RETURN_IF_ERROR(heap.Step());
  if (object.is_undefined()) return absl::InvalidArgumentError(object.text());
  Value attribute = BuiltinAttribute(object, name, heap);
  if (!attribute.is_missing()) return attribute;
  if (name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__") {
    return Unsafe(object, name, heap);
  }
  if (object.is_dict()) {
    const Value* found = object.dict().Find(std::string_view(name));
    if (found != nullptr) return *found;
  }
  return heap.Undefined(absl::StrCat("'", OwnerOf(object), "' has no attribute '", name, "'"));
}

absl::StatusOr<Value> SubscriptOf(const Value& object, const Value& index, Heap& heap) {
  RETURN_IF_ERROR(heap.Step());
  ASSIGN_OR_RETURN(Value item, ItemAt(object, index, heap));
  if (!item.is_missing()) return item;
  if (index.is_string()) {
    item = BuiltinAttribute(object, index.text(), heap);
    if (!item.is_missing()) return item;
    return heap.Undefined(
        absl::StrCat("'", OwnerOf(object), "' has no attribute '", index.text(), "'"));
  }
  std::string message = absl::StrCat(OwnerOf(object), " has no element ");
  RETURN_IF_ERROR(AppendRepr(index, heap, &message));
  return heap.Undefined(std::move(message));
}

}  // namespace pergola::jinja
