#include "coordinator/text/json_fields.h"

#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

using nlohmann::json;

std::string Shown(const json& value) {
  constexpr size_t kMaxShownBytes = 80;
  if (value.is_object()) return absl::StrCat("an object of ", value.size(), " fields");
  if (value.is_array()) return absl::StrCat("an array of ", value.size(), " elements");
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxShownBytes) text = text.substr(0, kMaxShownBytes) + "...";
  return text;
}

absl::Status Missing(std::string_view path) {
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(path), " is missing"));
}

}  // namespace

absl::Status WrongValue(std::string_view path, const json& value, std::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(path), " is ", Shown(value), "; it must be ", ToAbsl(wanted)));
}

absl::Status NotSupported(std::string_view path, const json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(path), " ", Shown(value), " is not supported"));
}

absl::StatusOr<int32_t> JsonId(const json& value, std::string_view path) {
  const bool fits = value.is_number_integer() &&
                    (value.is_number_unsigned()
                         ? value.get<uint64_t>() < kMaxVocabulary
                         : value.get<int64_t>() >= 0 && value.get<int64_t>() < kMaxVocabulary);
  if (!fits) {
    return WrongValue(path, value, absl::StrCat("an id from 0 to ", kMaxVocabulary - 1));
  }
  return value.get<int32_t>();
}

absl::StatusOr<JsonFields> JsonFields::Of(const json& value, std::string path) {
  if (!value.is_object()) return WrongValue(path.empty() ? "the file" : path, value, "an object");
  return JsonFields(value, std::move(path));
}

std::string JsonFields::PathOf(std::string_view name) const {
  return path_.empty() ? std::string(name) : absl::StrCat(path_, ".", ToAbsl(name));
}

const json* JsonFields::Find(const char* name) const {
  const auto found = object_->find(name);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<bool> JsonFields::Bool(const char* name, bool fallback) const {
  const json* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongValue(PathOf(name), *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(const char* name) const {
  ASSIGN_OR_RETURN(std::optional<std::string> value, OptionalString(name));
  if (!value.has_value()) return Missing(PathOf(name));
  return *std::move(value);
}

absl::StatusOr<std::optional<std::string>> JsonFields::OptionalString(const char* name) const {
  const json* value = Find(name);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongValue(PathOf(name), *value, "a string");
  return std::optional<std::string>(value->get_ref<const std::string&>());
}

absl::StatusOr<const json*> JsonFields::Array(const char* name) const {
  const json* value = Find(name);
  if (value == nullptr) return Missing(PathOf(name));
  if (!value->is_array()) return WrongValue(PathOf(name), *value, "an array");
  return value;
}

absl::StatusOr<int32_t> JsonFields::Id(const char* name) const {
  const json* value = Find(name);
  if (value == nullptr) return Missing(PathOf(name));
  return JsonId(*value, PathOf(name));
}

}  // namespace pergola
