#include "coordinator/text/jinja/json_value.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/parse_number.h"
#include "nlohmann/json.hpp"

namespace pergola::jinja {
namespace {

// Receives nlohmann's events; false ends the parsing.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return Add(Value::None()); }
  bool boolean(bool value) override { return Add(Value::Bool(value)); }
  bool number_integer(int64_t value) override { return Add(Value::Integer(value)); }
  bool number_unsigned(uint64_t value) override { return Add(Value::Integer(value)); }
  bool number_float(double value, const std::string& text) override {
    if (text.find_first_of(".eE") != std::string::npos) return Add(Value::Float(value));
    const auto integer = ParseInt(text, 10);
    if (integer) return Add(Value::Integer(*integer));
    return Refuse(absl::StrCat("the integer ", text.substr(0, 50), " does not fit in 128 bits"));
  }
  bool string(std::string& value) override { return Add(PlainString(std::move(value))); }
  bool binary(binary_t&) override { return Refuse("binary values are no JSON"); }
  bool start_object(size_t) override { return Open(/*is_object=*/true); }
  bool start_array(size_t) override { return Open(/*is_object=*/false); }
  bool key(std::string& name) override {
    open_.back().key = PlainString(std::move(name));
    return true;
  }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Refuse(absl::StrCat("it is not JSON at byte ", position));
  }

  Value Take() { return std::move(result_); }
  const std::string& error() const { return error_; }

 private:
  struct Container {
    std::shared_ptr<DictObject> dict;  // null: an array
    Value key;
    std::vector<Value> items;
  };

  bool Refuse(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }
  bool Open(bool is_object) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      return Refuse(absl::StrCat("it nests deeper than ", max_depth_));
    }
    open_.emplace_back();
    if (is_object) open_.back().dict = std::make_shared<DictObject>();
    return true;
  }
  bool Close() {
    Container closed = std::move(open_.back());
    open_.pop_back();
    return Add(closed.dict != nullptr ? PlainDict(std::move(closed.dict))
                                      : PlainList(std::move(closed.items)));
  }
  bool Add(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (open_.back().dict != nullptr) {
      open_.back().dict->Set(std::move(open_.back().key), std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  const int max_depth_;
  std::vector<Container> open_;
  Value result_;
  std::string error_;
};

}  // namespace

absl::StatusOr<Value> ParseJson(std::string_view text, int max_depth) {
  Builder builder(max_depth);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(builder.error());
  }
  return builder.Take();
}

}  // namespace pergola::jinja
