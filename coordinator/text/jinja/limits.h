// What one template may use. A template comes with a model, its context from a client: neither is
// trusted, so everything that can grow has a bound here, and each refusal names bound and value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/limits.h"

namespace pergola {

struct JinjaLimits {
  size_t template_bytes = 1u << 20;
  // Nested expressions and statements of the template's text, each chain of operators included.
  // The parser and every walk over the parsed template recurse this deep at most.
  int nesting = 200;
  // Evaluations within evaluations and macros within macros while rendering.
  int call_depth = 500;
  // Nested lists and dicts of a value, the context's included.
  int value_depth = 100;
  uint64_t steps = 20'000'000;            // evaluated nodes, and 16 bytes or 8 items touched by one
  uint64_t memory_bytes = 256u << 20;     // alive at one time, the context not counted
  uint64_t output_bytes = kMaxTextBytes;  // the rendered text: a prompt
};

}  // namespace pergola
