// Makes the values of one rendering and keeps its budgets: steps, memory, nesting. The first budget
// that is exceeded is remembered, and every later Step() returns it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

class Heap {
 public:
  explicit Heap(const JinjaLimits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;
  ~Heap();

  // Counts `count` steps; RESOURCE_EXHAUSTED from the first exceeded budget on.
  absl::Status Step(uint64_t count = 1);
  // Counts the steps of touching that much.
  absl::Status StepBytes(uint64_t bytes) { return Step(bytes / 16); }
  absl::Status StepItems(uint64_t items) { return Step(items / 8); }
  // Counts the steps of a function that reads its texts and sequences once.
  absl::Status StepInput(const Value& value, const Arguments& arguments);
  // Whether a value of `bytes` may be made; to be asked before one that is larger than its parts.
  absl::Status CheckBytes(uint64_t bytes);
  // Counts evaluations within evaluations; Leave only after an Enter that was OK.
  absl::Status Enter();
  void Leave() { --depth_; }
  // Appends within the memory budget.
  absl::Status Append(std::string_view text, std::string* out);

  // `text` is valid UTF-8.
  Value String(std::string text, bool safe = false);
  Value List(std::vector<Value> items) { return Sequence(Kind::kList, std::move(items), false); }
  Value Tuple(std::vector<Value> items) { return Sequence(Kind::kTuple, std::move(items), false); }
  Value Group(Value grouper, Value list);
  Value Dict(std::shared_ptr<DictObject> dict);
  Value View(Value dict, ViewObject::Part part);
  Value Range(const RangeObject& range);
  Value Generator(std::vector<Value> items, absl::Status error = absl::OkStatus());
  Value Method(Value receiver, std::string name);
  Value Function(std::string name);
  Value Namespace(std::shared_ptr<DictObject> attributes);  // by text
  Value Cycler(std::vector<Value> items);
  Value Joiner(std::string separator);
  Value Undefined(std::string message);

  // Counts an object made elsewhere.
  void Own(Object* object, uint64_t bytes);
  // Keeps an object that may be part of a cycle until the end of the rendering.
  void Keep(std::shared_ptr<Object> object) { kept_.push_back(std::move(object)); }

  const JinjaLimits& limits() const { return limits_; }

 private:
  Value Sequence(Kind kind, std::vector<Value> items, bool group);
  Value Made(Kind kind, std::shared_ptr<Object> object, uint64_t bytes);
  absl::Status Refuse(const char* what, uint64_t limit);

  const JinjaLimits limits_;
  MemoryAccount account_;
  uint64_t steps_ = 0;
  int depth_ = 0;
  absl::Status refused_;
  std::vector<std::shared_ptr<Object>> kept_;
};

// Values without a budget: of templates and contexts.
Value PlainString(std::string text, bool safe = false);
Value PlainList(std::vector<Value> items);
Value PlainDict(std::shared_ptr<DictObject> dict);  // sets its depth

int64_t CountCodePoints(std::string_view text);

}  // namespace pergola::jinja
