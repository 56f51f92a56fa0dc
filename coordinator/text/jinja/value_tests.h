// Jinja's tests: "value is NAME(arguments)".
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

bool IsTest(std::string_view name);
absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& value,
                               const Arguments& arguments, Heap& heap);

}  // namespace pergola::jinja
