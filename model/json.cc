#include "model/json.h"

#include <cmath>
#include <vector>

#include "base/status.h"
#include "model/byte_source.h"

namespace pergola {
namespace {

using nlohmann::json;

// The library's own builders keep the last of two equal keys, have no limit of depth, and where
// they ask a callback take time quadratic in the elements of a list.
class StrictBuilder final : public nlohmann::json_sax<json> {
 public:
  json Take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t& /*value*/) override { return Fail("holds binary data"); }
  bool start_object(size_t /*elements*/) override { return Open(json::object()); }
  bool start_array(size_t /*elements*/) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    auto& object = *open_.back()->get_ptr<json::object_t*>();
    const auto [at, is_new] = object.try_emplace(name);
    if (!is_new) return Fail(absl::StrCat("key \"", Printable(name), "\" is given twice"));
    member_ = &at->second;
    return true;
  }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return Fail(absl::StrCat("is not valid JSON at byte ", position));
  }

 private:
  bool Fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }

  // Where the value lies from now on, or null.
  json* Add(json value) {
    if (++values_ > kMaxJsonValues) {
      Fail(absl::StrCat("holds more than ", kMaxJsonValues, " values"));
      return nullptr;
    }
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_object()) return &(*member_ = std::move(value));
    return &open_.back()->get_ref<json::array_t&>().emplace_back(std::move(value));
  }

  bool Open(json container) {
    if (open_.size() == kMaxJsonDepth) {
      return Fail(absl::StrCat("nested deeper than ", kMaxJsonDepth));
    }
    json* const added = Add(std::move(container));
    if (added == nullptr) return false;
    open_.push_back(added);
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  json root_;
  std::vector<json*> open_;  // a list grows only while its last element is closed
  json* member_ = nullptr;   // of the key that was read last
  int64_t values_ = 0;
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view where) {
  StrictBuilder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": ", builder.problem()));
  }
  return builder.Take();
}

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view where) {
  ASSIGN_OR_RETURN(json value, ParseJson(text, where));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(where), ": is a JSON ", value.type_name(), ", but must be an object"));
  }
  return value;
}

std::string JsonText(const json& value) {
  return Printable(value.dump(-1, ' ', true, json::error_handler_t::replace));
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
  return absl::InvalidArgumentError(absl::StrCat(where_, ": ", Printable(key), " is ",
                                                 found == nullptr ? "missing" : JsonText(*found),
                                                 ", but must be ", ToAbsl(wanted)));
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
