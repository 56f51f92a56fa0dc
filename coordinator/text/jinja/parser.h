// Jinja's grammar: tokens to statements and expressions. The names are bound by scope.h.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/limits.h"

namespace pergola::jinja {

// INVALID_ARGUMENT "line N: ..." for what Jinja refuses and for the tags that have no place in a
// chat template (include, import, extends, block, autoescape, recursive loops).
absl::StatusOr<Template> ParseTemplate(std::string_view source, const JinjaLimits& limits);

}  // namespace pergola::jinja
