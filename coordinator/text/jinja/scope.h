// Binds the names of a template to slots, once, as Jinja's compiler does. The template, each macro
// and each call block is a function with slots; loops, with, set and filter blocks are scopes
// within it, `if` is none. A scope that assigns a name has a slot of its own for it, which starts
// with the value of the scope around it, or else of the context if an `if` may skip the assignment,
// or else as undefined. So a name means the same wherever it stands in a scope, and macros see the
// variables of the function around them as they are when called.
#pragma once

#include "absl/status/status.h"
#include "coordinator/text/jinja/ast.h"

namespace pergola::jinja {

// INVALID_ARGUMENT "line N: ..." for `break` outside of a loop, an assignment to `loop` within one,
// and for unknown filters and tests that no condition guards.
absl::Status BindNames(Template* parsed);

}  // namespace pergola::jinja
