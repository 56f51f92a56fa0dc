// Values as text: Python's str() and repr(), and json.dumps.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// Errors: RESOURCE_EXHAUSTED (also for a namespace that holds itself).
absl::Status AppendText(const Value& value, Heap& heap, std::string* out);
absl::Status AppendRepr(const Value& value, Heap& heap, std::string* out);
absl::StatusOr<std::string> TextOf(const Value& value, Heap& heap);

std::string TextOfInt(Int value);
std::string ReprOfFloat(double value);  // the shortest text that reads back the same
std::string ReprOfString(std::string_view text);
std::string EscapeHtml(std::string_view text);  // as markupsafe

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// INVALID_ARGUMENT for what JSON has no form for.
absl::Status AppendJson(const Value& value, const JsonStyle& style, Heap& heap, std::string* out);

}  // namespace pergola::jinja
