// Attributes and methods of built-in values, as Python's and within the limits of Jinja's immutable
// sandbox: what would change a list or a dict does not exist for a template.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// object.name, the attribute proper: missing if there is none. Of loops see evaluator.h.
Value BuiltinAttribute(const Value& object, std::string_view name, Heap& heap);
// Calls a method that BuiltinAttribute gave.
absl::StatusOr<Value> CallMethod(const Value& receiver, const std::string& name,
                                 const Arguments& arguments, Heap& heap);

// object.name and object[index] with Jinja's fallbacks to each other; undefined if neither is
// there. An undefined object is an error.
absl::StatusOr<Value> AttributeOf(const Value& object, const std::string& name, Heap& heap);
absl::StatusOr<Value> SubscriptOf(const Value& object, const Value& index, Heap& heap);

// str methods (string_methods.cc).
bool IsStringMethod(std::string_view name);
absl::StatusOr<Value> CallStringMethod(const Value& receiver, const std::string& name,
                                       const Arguments& arguments, Heap& heap);
// str.format (string_format.cc).
absl::StatusOr<Value> BraceFormat(const Value& text, const Arguments& arguments, Heap& heap);

}  // namespace pergola::jinja
