#include "coordinator/text/jinja/template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/evaluator.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/parser.h"

namespace pergola {

absl::StatusOr<JinjaTemplate> JinjaTemplate::Parse(std::string_view source,
                                                   const JinjaLimits& limits) {
  ASSIGN_OR_RETURN(jinja::Template parsed, jinja::ParseTemplate(source, limits));
  return JinjaTemplate(std::make_shared<const jinja::Template>(std::move(parsed)), limits);
}

absl::StatusOr<std::string> JinjaTemplate::Render(const jinja::Value& context,
                                                  const std::tm& now) const {
  if (!context.is_dict()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the context of a template is a ", jinja::TypeName(context), ", not a dict"));
  }
  if (context.depth() > limits_.value_depth) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the context of a template has ", context.depth(),
                     " nested values; its budget is ", limits_.value_depth));
  }
  jinja::Heap heap(limits_);
  return jinja::Evaluator(*parsed_, context.dict(), now, &heap).Run();
}

}  // namespace pergola
