// JSON text as a template's value. Not for typed fields (json_fields.h): here any shape will do.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// As Python's json.loads: objects keep their order, the last of equal keys wins, integers stay
// exact. INVALID_ARGUMENT for what is no JSON, nests deeper than `max_depth` or holds an integer
// beyond 128 bits. Numbers beyond a double's range are refused where Python reads infinity.
absl::StatusOr<Value> ParseJson(std::string_view text, int max_depth);

}  // namespace pergola::jinja
