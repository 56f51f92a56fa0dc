#include "model/json.h"

#include <cmath>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "model/byte_source.h"

namespace pergola {
namespace {

using nlohmann::json;

// The library keeps the last of two equal keys and has no depth limit; this callback sees both.
class StrictCallback {
 public:
  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxJsonDepth) problem_ = absl::StrCat("nested deeper than ", kMaxJsonDepth);
    if (!problem_.empty()) return false;
    if (event == json::parse_event_t::object_start) {
      keys_.resize(static_cast<size_t>(depth) + 1);
      keys_.back().clear();
    } else if (event == json::parse_event_t::key) {
      const auto* key = parsed.get_ptr<const std::string*>();
      keys_.resize(static_cast<size_t>(depth));
      if (!keys_.back().insert(*key).second) {
        problem_ = absl::StrCat("key \"", Printable(*key), "\" is given twice");
      }
    }
    return true;
  }
  const std::string& problem() const { return problem_; }

 private:
  std::vector<absl::flat_hash_set<std::string>> keys_;  // by depth of the object
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view where) {
  StrictCallback callback;
  json value = json::parse(
      text.begin(), text.end(),
      [&callback](int depth, json::parse_event_t event, json& parsed) {
        return callback(depth, event, parsed);
      },
      /*allow_exceptions=*/false);
  if (!callback.problem().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": ", callback.problem()));
  }
  if (value.is_discarded()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(where), ": is not valid JSON (", text.size(), " bytes)"));
  }
  return value;
}

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view where) {
  ASSIGN_OR_RETURN(json value, ParseJson(text, where));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(where), ": is a JSON ", value.type_name(), ", but must be an object"));
  }
  return value;
}

const json* JsonObject::Find(std::string_view key) const {
  const auto found = value_.find(std::string(key));
  return found == value_.end() ? nullptr : &*found;
}

bool JsonObject::Has(std::string_view key) const {
  const json* found = Find(key);
  return found != nullptr && !found->is_null();
}

absl::Status JsonObject::Wrong(std::string_view key, std::string_view wanted) const {
  const json* found = Find(key);
  const std::string shown =
      found == nullptr ? "missing" : found->dump(-1, ' ', true, json::error_handler_t::replace);
  return absl::InvalidArgumentError(absl::StrCat(
      where_, ": ", Printable(key), " is ", Printable(shown), ", but must be ", ToAbsl(wanted)));
}

absl::StatusOr<int64_t> JsonObject::Int(std::string_view key, int64_t fallback, int64_t min,
                                        int64_t max) const {
  if (!Has(key)) return fallback;
  const json* found = Find(key);
  const std::string wanted = absl::StrCat("an integer from ", min, " to ", max);
  if (!found->is_number_integer()) return Wrong(key, wanted);
  if (const auto* big = found->get_ptr<const json::number_unsigned_t*>()) {
    if (*big > static_cast<uint64_t>(INT64_MAX)) return Wrong(key, wanted);
  }
  const auto value = found->get<int64_t>();
  if (value < min || value > max) return Wrong(key, wanted);
  return value;
}

absl::StatusOr<double> JsonObject::Number(std::string_view key, double fallback, double min,
                                          double max) const {
  if (!Has(key)) return fallback;
  const json* found = Find(key);
  const std::string wanted = absl::StrCat("a number from ", min, " to ", max);
  if (!found->is_number()) return Wrong(key, wanted);
  const auto value = found->get<double>();
  if (!std::isfinite(value) || value < min || value > max) return Wrong(key, wanted);
  return value;
}

absl::StatusOr<bool> JsonObject::Bool(std::string_view key, bool fallback) const {
  if (!Has(key)) return fallback;
  const json* found = Find(key);
  if (!found->is_boolean()) return Wrong(key, "true or false");
  return found->get<bool>();
}

absl::StatusOr<std::string> JsonObject::String(std::string_view key,
                                               std::string_view fallback) const {
  if (!Has(key)) return std::string(fallback);
  const json* found = Find(key);
  if (!found->is_string()) return Wrong(key, "a string");
  return found->get<std::string>();
}

absl::StatusOr<JsonObject> JsonObject::Object(std::string_view key) const {
  const json* found = Find(key);
  if (found == nullptr || !found->is_object()) return Wrong(key, "an object");
  return JsonObject(*found, absl::StrCat(where_, ": ", Printable(key)));
}

}  // namespace pergola
