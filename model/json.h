// Small checked accessors over nlohmann::json: typed, bounded, never throwing, the place of a value
// named in the error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace pergola {

inline constexpr int64_t kMaxConfigBytes = 16 << 20;      // config.json and its like
inline constexpr int64_t kMaxTokenizerBytes = 256 << 20;  // tokenizer.json
inline constexpr int kMaxJsonDepth = 64;
// Published tokenizers have up to 3 million. Each takes up to 64 bytes of memory, 20 times what it
// may take of the file.
inline constexpr int64_t kMaxJsonValues = 16 << 20;

// Parses strict JSON, in linear time. INVALID_ARGUMENT, beginning with `where`, for a syntax error,
// a key given twice in one object, nesting beyond kMaxJsonDepth or more than kMaxJsonValues.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view where);
// The same, and the top must be an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view where);

// A value as text for a message, cut where it is long.
std::string JsonText(const nlohmann::json& value);

// A view of an object. Borrows the json; keys that are absent or null give the fallback.
class JsonObject {
 public:
  // `value` must be an object. `where` begins every message: "config.json" or "config.json:
  // rope_scaling".
  JsonObject(const nlohmann::json& value, std::string where)
      : value_(value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const nlohmann::json& value() const { return value_; }
  // The value, or nullptr if the key is absent.
  const nlohmann::json* Find(std::string_view key) const;
  // Present and not null.
  bool Has(std::string_view key) const;
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t fallback, int64_t min,
                              int64_t max) const;
  // Finite, within [min, max].
  absl::StatusOr<double> Number(std::string_view key, double fallback, double min,
                                double max) const;
  absl::StatusOr<bool> Bool(std::string_view key, bool fallback) const;
  absl::StatusOr<std::string> String(std::string_view key, std::string_view fallback) const;
  // The object at `key`, which must be there.
  absl::StatusOr<JsonObject> Object(std::string_view key) const;
  // INVALID_ARGUMENT "where: key is <value>, but must be <wanted>".
  absl::Status Wrong(std::string_view key, std::string_view wanted) const;

 private:
  const nlohmann::json& value_;
  std::string where_;
};

}  // namespace pergola
