#include "coordinator/text/jinja/filters.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"

namespace pergola::jinja {

absl::StatusOr<std::vector<Value>> FilterCall::Bind(std::initializer_list<const char*> names,
                                                    size_t required) const {
  return BindArguments({name.c_str(), names, required}, arguments);
}

bool IsFilter(std::string_view name) {
  return FindTextFilter(name) != nullptr || FindListFilter(name) != nullptr;
}

absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& value,
                                  const Arguments& arguments, Heap& heap) {
  Filter filter = FindTextFilter(name);
  if (filter == nullptr) filter = FindListFilter(name);
  if (filter == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no filter named '", name, "'"));
  }
  RETURN_IF_ERROR(heap.Enter());
  const absl::Status counted = heap.StepInput(value, arguments);
  if (!counted.ok()) {
    heap.Leave();
    return counted;
  }
  auto result = filter({name, value, arguments, heap});
  heap.Leave();
  return result;
}

}  // namespace pergola::jinja
