#include "coordinator/text/jinja/heap.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace pergola::jinja {
namespace {

// What an object costs beside its contents: its own fields and the allocator's.
constexpr uint64_t kObjectBytes = 128;
constexpr uint64_t kEntryBytes = 2 * sizeof(Value) + 48;  // of a dict, its index included

void Weigh(const Value& part, Object* whole) {
  whole->depth = std::max({whole->depth, 1, part.depth() + 1});
  const uint64_t sum = whole->weight + part.weight();
  whole->weight = sum < part.weight() ? UINT64_MAX : sum;
}

void Weigh(const std::vector<Value>& items, Object* whole) {
  whole->depth = 1;
  for (const Value& item : items) Weigh(item, whole);
}

void Weigh(DictObject* dict) {
  dict->depth = 1;
  for (const auto& [key, value] : dict->entries()) {
    Weigh(key, dict);
    Weigh(value, dict);
  }
}

std::shared_ptr<TextObject> MakeText(std::string text) {
  auto object = std::make_shared<TextObject>();
  object->length = CountCodePoints(text);
  object->text = std::move(text);
  object->weight = 1 + object->text.size() / 64;
  return object;
}

}  // namespace

int64_t CountCodePoints(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

Heap::~Heap() {
  for (const auto& object : kept_) object->Clear();
}

absl::Status Heap::Refuse(const char* what, uint64_t limit) {
  if (refused_.ok()) {
    refused_ = absl::ResourceExhaustedError(
        absl::StrCat("the template exceeds its budget of ", limit, " ", what));
  }
  return refused_;
}

absl::Status Heap::Step(uint64_t count) {
  steps_ += std::min(count, UINT64_MAX - steps_);  // weights end at the largest number
  if (!refused_.ok()) return refused_;
  if (steps_ > limits_.steps) return Refuse("steps", limits_.steps);
  if (account_.live_bytes > limits_.memory_bytes) {
    return Refuse("bytes of memory", limits_.memory_bytes);
  }
  return absl::OkStatus();
}

absl::Status Heap::StepInput(const Value& value, const Arguments& arguments) {
  uint64_t bytes = 0;
  const auto add = [&bytes](const Value& input) {
    if (input.is_string()) bytes += input.text().size();
    if (input.is_sequence()) bytes += input.items().size() * 2;
  };
  add(value);
  for (const Value& argument : arguments.positional) add(argument);
  for (const auto& [name, argument] : arguments.keyword) add(argument);
  return StepBytes(bytes);
}

absl::Status Heap::Enter() {
  if (depth_ >= limits_.call_depth) return Refuse("nested evaluations", limits_.call_depth);
  ++depth_;
  return Step();
}

absl::Status Heap::CheckBytes(uint64_t bytes) {
  RETURN_IF_ERROR(StepBytes(bytes));
  if (bytes > limits_.memory_bytes || account_.live_bytes > limits_.memory_bytes - bytes) {
    return Refuse("bytes of memory", limits_.memory_bytes);
  }
  return absl::OkStatus();
}

absl::Status Heap::Append(std::string_view text, std::string* out) {
  RETURN_IF_ERROR(StepBytes(text.size()));
  if (out->size() + text.size() > limits_.memory_bytes) {
    return Refuse("bytes of memory", limits_.memory_bytes);
  }
  out->append(text);
  return absl::OkStatus();
}

void Heap::Own(Object* object, uint64_t bytes) {
  object->account = &account_;
  object->bytes = kObjectBytes + bytes;
  account_.live_bytes += object->bytes;
}

Value Heap::Made(Kind kind, std::shared_ptr<Object> object, uint64_t bytes) {
  if (object->depth > limits_.value_depth) {
    (void)Refuse("nested values", limits_.value_depth);
    return Value::None();
  }
  Own(object.get(), bytes);
  return {kind, std::move(object)};
}

Value Heap::String(std::string text, bool safe) {
  (void)StepBytes(text.size());
  auto object = MakeText(std::move(text));
  Own(object.get(), object->text.capacity());
  return {Kind::kString, std::move(object), safe};
}

Value Heap::Sequence(Kind kind, std::vector<Value> items, bool group) {
  auto object = std::make_shared<ListObject>();
  Weigh(items, object.get());
  object->items = std::move(items);
  object->group = group;
  const uint64_t bytes = object->items.capacity() * sizeof(Value);
  return Made(kind, std::move(object), bytes);
}

Value Heap::Group(Value grouper, Value list) {
  return Sequence(Kind::kTuple, {std::move(grouper), std::move(list)}, true);
}

Value Heap::Dict(std::shared_ptr<DictObject> dict) {
  Weigh(dict.get());
  const uint64_t bytes = dict->entries().size() * kEntryBytes;
  return Made(Kind::kDict, std::move(dict), bytes);
}

Value Heap::View(Value dict, ViewObject::Part part) {
  auto object = std::make_shared<ViewObject>();
  Weigh(dict, object.get());
  object->dict = std::move(dict);
  object->part = part;
  return Made(Kind::kView, std::move(object), 0);
}

Value Heap::Range(const RangeObject& range) {
  auto object = std::make_shared<RangeObject>();
  object->start = range.start;
  object->stop = range.stop;
  object->step = range.step;
  object->length = range.length;
  return Made(Kind::kRange, std::move(object), 0);
}

Value Heap::Generator(std::vector<Value> items, absl::Status error) {
  auto object = std::make_shared<GeneratorObject>();
  Weigh(items, object.get());
  object->items = std::move(items);
  object->error = std::move(error);
  const uint64_t bytes = object->items.capacity() * sizeof(Value);
  return Made(Kind::kGenerator, std::move(object), bytes);
}

Value Heap::Method(Value receiver, std::string name) {
  auto object = std::make_shared<MethodObject>();
  Weigh(receiver, object.get());
  object->receiver = std::move(receiver);
  object->name = std::move(name);
  return Made(Kind::kMethod, std::move(object), 0);
}

Value Heap::Function(std::string name) {
  auto object = std::make_shared<FunctionObject>();
  object->name = std::move(name);
  return Made(Kind::kFunction, std::move(object), 0);
}

// What can change has no depth: it may come to refer to anything. All of it is kept to the end, so
// its destruction is flat.
Value Heap::Namespace(std::shared_ptr<DictObject> attributes) {
  auto object = std::make_shared<NamespaceObject>();
  object->attributes = std::move(attributes);
  Keep(object);
  const uint64_t bytes = object->attributes->entries().size() * kEntryBytes;
  return Made(Kind::kNamespace, std::move(object), bytes);
}

Value Heap::Cycler(std::vector<Value> items) {
  auto object = std::make_shared<CyclerObject>();
  Weigh(items, object.get());
  object->items = std::move(items);
  const uint64_t bytes = object->items.capacity() * sizeof(Value);
  return Made(Kind::kCycler, std::move(object), bytes);
}

Value Heap::Joiner(std::string separator) {
  auto object = std::make_shared<JoinerObject>();
  object->separator = std::move(separator);
  const uint64_t bytes = object->separator.capacity();
  return Made(Kind::kJoiner, std::move(object), bytes);
}

Value Heap::Undefined(std::string message) {
  (void)StepBytes(message.size());
  auto object = MakeText(std::move(message));
  Own(object.get(), object->text.capacity());
  return {Kind::kUndefined, std::move(object)};
}

Value PlainString(std::string text, bool safe) {
  return {Kind::kString, MakeText(std::move(text)), safe};
}

Value PlainList(std::vector<Value> items) {
  auto object = std::make_shared<ListObject>();
  Weigh(items, object.get());
  object->items = std::move(items);
  return {Kind::kList, std::move(object)};
}

Value PlainDict(std::shared_ptr<DictObject> dict) {
  Weigh(dict.get());
  return {Kind::kDict, std::move(dict)};
}

}  // namespace pergola::jinja
