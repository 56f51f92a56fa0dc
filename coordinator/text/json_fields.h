// Typed reading of one untrusted JSON object; errors name the path, what was expected and what is
// there.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace pergola {

// An object (or null, or nothing at all) at `path` of a file. Borrows the value.
class JsonFields {
 public:
  // INVALID_ARGUMENT unless `value` is an object.
  static absl::StatusOr<JsonFields> Of(const nlohmann::json& value, std::string path);

  // The field, or nullptr if it is missing or null.
  const nlohmann::json* Find(const char* name) const;
  // The fields: a missing or null one is `fallback`, or an error where there is none.
  absl::StatusOr<bool> Bool(const char* name, bool fallback) const;
  absl::StatusOr<std::string> String(const char* name) const;
  absl::StatusOr<std::optional<std::string>> OptionalString(const char* name) const;
  absl::StatusOr<const nlohmann::json*> Array(const char* name) const;
  // An id from 0 to kMaxVocabulary - 1.
  absl::StatusOr<int32_t> Id(const char* name) const;

  const std::string& path() const { return path_; }
  std::string PathOf(std::string_view name) const;

 private:
  JsonFields(const nlohmann::json& object, std::string path)
      : object_(&object), path_(std::move(path)) {}
  const nlohmann::json* object_;
  std::string path_;
};

// `value` as an id from 0 to kMaxVocabulary - 1.
absl::StatusOr<int32_t> JsonId(const nlohmann::json& value, std::string_view path);
// "PATH is VALUE; it must be WANTED", the value cut to a line.
absl::Status WrongValue(std::string_view path, const nlohmann::json& value,
                        std::string_view wanted);
// "PATH VALUE is not supported".
absl::Status NotSupported(std::string_view path, const nlohmann::json& value);

}  // namespace pergola
