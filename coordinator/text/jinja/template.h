// Jinja templates, as far as chat templates use them: parse once, render many times, from any
// thread. Judged byte for byte against jinja2 in the environment of transformers'
// apply_chat_template: an immutable sandbox, trim_blocks and lstrip_blocks on, loop controls, the
// tag generation, and the globals range, dict, namespace, cycler, joiner, raise_exception and
// strftime_now. A template reads its context and nothing else of this machine. Not here: templates
// that load others (include, import, extends, block), recursive loops, autoescape; integers end
// at 128 bits.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace pergola {

class JinjaTemplate {
 public:
  // Errors: INVALID_ARGUMENT "line N: ..." for what is no template, RESOURCE_EXHAUSTED for an
  // exceeded budget, named with its limit.
  static absl::StatusOr<JinjaTemplate> Parse(std::string_view source,
                                             const JinjaLimits& limits = {});

  // `context` is a dict with the variables by name (jinja/json_value.h makes one); `now` is what
  // strftime_now tells. Errors as above; what the template itself raises reads
  // "line N: raised: its message".
  absl::StatusOr<std::string> Render(const jinja::Value& context, const std::tm& now) const;

 private:
  JinjaTemplate(std::shared_ptr<const jinja::Template> parsed, const JinjaLimits& limits)
      : parsed_(std::move(parsed)), limits_(limits) {}

  std::shared_ptr<const jinja::Template> parsed_;  // copies of the template share it
  JinjaLimits limits_;
};

}  // namespace pergola
