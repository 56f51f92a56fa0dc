#include "coordinator/text/chat_template.h"

#include <algorithm>
#include <memory>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/json_value.h"
#include "coordinator/text/tokenizer.h"

namespace pergola {
namespace {

using jinja::DictObject;
using jinja::Kind;
using jinja::Value;

constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};
constexpr std::string_view kOwnVariables[] = {"messages", "tools", "documents",
                                              "add_generation_prompt"};

using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

// tokenizer_config.json as a dict; an empty one if there is none.
absl::StatusOr<Value> ReadTokenizerConfig(const std::string& text, int max_depth) {
  auto value = jinja::ParseJson(text.empty() ? "{}" : text, max_depth);
  if (!value.ok()) return Prefixed(value.status(), "tokenizer_config.json");
  if (!value->is_dict()) {
    return absl::InvalidArgumentError("tokenizer_config.json is not an object");
  }
  return value;
}

// A token is its text or an object with the text as content.
SpecialTokens SpecialTokensOf(const DictObject& config) {
  SpecialTokens tokens;
  for (const char* const name : kSpecialTokens) {
    const Value* token = config.Find(std::string_view(name));
    if (token != nullptr && token->is_dict()) token = token->dict().Find("content");
    if (token != nullptr && token->is_string()) tokens.emplace_back(name, token->text());
  }
  return tokens;
}

SpecialTokens SpecialTokensOf(const GgufVocabulary& vocabulary) {
  const std::pair<const char*, std::optional<int32_t>> ids[] = {
      {"bos_token", vocabulary.bos_id},
      {"eos_token", vocabulary.eos_id},
      {"unk_token", vocabulary.unknown_id},
      {"pad_token", vocabulary.padding_id},
  };
  SpecialTokens tokens;
  for (const auto& [name, id] : ids) {
    if (!id || *id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size())) continue;
    tokens.emplace_back(name, vocabulary.tokens[*id]);
  }
  return tokens;
}

// The template named "tool_use", if the model's templates are a list and its default is in use.
std::optional<std::string> ToolTemplateOf(const DictObject& config, const std::string& in_use) {
  const Value* list = config.Find("chat_template");
  if (list == nullptr || list->kind() != Kind::kList) return std::nullopt;
  std::optional<std::string> found;
  bool is_default = false;
  for (const Value& entry : list->items()) {
    if (!entry.is_dict()) continue;
    const Value* name = entry.dict().Find("name");
    const Value* text = entry.dict().Find("template");
    if (name == nullptr || text == nullptr || !name->is_string() || !text->is_string()) continue;
    if (name->text() == "default") is_default = text->text() == in_use;
    if (name->text() == "tool_use") found = text->text();
  }
  return is_default ? found : std::nullopt;
}

absl::Status Refused(const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat("must be ", wanted));
}

// `text` as an array of objects, or none if it is empty.
absl::StatusOr<Value> ObjectsOf(const std::string& text, int max_depth) {
  if (text.empty()) return Value::None();
  ASSIGN_OR_RETURN(const Value value, jinja::ParseJson(text, max_depth));
  if (value.kind() != Kind::kList) return Refused("a JSON array of objects");
  for (const Value& item : value.items()) {
    if (!item.is_dict()) return Refused("a JSON array of objects");
  }
  return value;
}

absl::StatusOr<Value> ObjectOf(const std::string& text, int max_depth) {
  ASSIGN_OR_RETURN(const Value value, jinja::ParseJson(text.empty() ? "{}" : text, max_depth));
  if (!value.is_dict()) return Refused("a JSON object");
  return value;
}

void Set(std::string_view name, Value value, DictObject* dict) {
  dict->Set(jinja::PlainString(std::string(name)), std::move(value));
}

// Fields that are none vanish, and the names that reasoning goes by are filled from each other, as
// transformers does before it renders.
std::shared_ptr<DictObject> Normalized(const DictObject& message) {
  const Value* reasoning = nullptr;
  for (const std::string_view name : {"reasoning_content", "thinking", "reasoning"}) {
    const Value* found = message.Find(name);
    if (reasoning == nullptr && found != nullptr && !found->is_none()) reasoning = found;
  }
  auto result = std::make_shared<DictObject>();
  if (reasoning != nullptr) Set("thinking", *reasoning, result.get());
  for (const auto& [key, value] : message.entries()) {
    if (!value.is_none()) result->Set(key, value);
  }
  if (reasoning != nullptr) Set("reasoning_content", *reasoning, result.get());
  return result;
}

// `field` is the message's; what is at fault within it is appended.
absl::StatusOr<Value> MessageOf(const ChatMessage& message, int max_depth, std::string* field) {
  DictObject whole;
  const std::pair<const char*, const std::string*> texts[] = {
      {"role", &message.role},
      {"content", message.content ? &*message.content : nullptr},
      {"name", message.name ? &*message.name : nullptr}};
  for (const auto& [name, text] : texts) {
    if (text == nullptr) continue;
    if (FindInvalidUtf8(*text) >= 0) {
      absl::StrAppend(field, ".", name);
      return Refused("valid UTF-8");
    }
    Set(name, jinja::PlainString(*text), &whole);
  }
  auto fields = ObjectOf(message.fields_json, max_depth);
  if (!fields.ok()) {
    *field += ".fields_json";
    return fields.status();
  }
  for (const auto& [key, value] : fields->dict().entries()) whole.Set(key, value);
  return jinja::PlainDict(Normalized(whole));
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Create(const TextParts& parts,
                                                  const JinjaLimits& limits) {
  if (parts.chat_template.empty()) {
    return absl::NotFoundError(
        absl::StrCat("the model ", parts.model_name, " has no chat template"));
  }
  auto plain = JinjaTemplate::Parse(parts.chat_template, limits);
  if (!plain.ok()) return Prefixed(plain.status(), "chat template");
  ChatTemplate made(*std::move(plain), limits);
  ASSIGN_OR_RETURN(const Value config,
                   ReadTokenizerConfig(parts.tokenizer_config_json, limits.value_depth));
  made.special_tokens_ = parts.gguf ? SpecialTokensOf(*parts.gguf) : SpecialTokensOf(config.dict());
  const auto tool_use = ToolTemplateOf(config.dict(), parts.chat_template);
  if (tool_use) {
    auto parsed = JinjaTemplate::Parse(*tool_use, limits);
    if (!parsed.ok()) return Prefixed(parsed.status(), "chat template tool_use");
    made.tool_use_ = std::make_shared<const JinjaTemplate>(*std::move(parsed));
  }
  return made;
}

absl::StatusOr<std::string> ChatTemplate::Render(const Conversation& conversation,
                                                 std::string* field) const {
  *field = "messages";
  if (conversation.messages.empty()) return Refused("at least one message");
  const int depth = limits_.value_depth;
  auto context = std::make_shared<DictObject>();
  for (const auto& [name, text] : special_tokens_) {
    Set(name, jinja::PlainString(text), context.get());
  }
  *field = "variables_json";
  ASSIGN_OR_RETURN(const Value variables, ObjectOf(conversation.variables_json, depth));
  for (const auto& [name, value] : variables.dict().entries()) {
    if (std::find(std::begin(kOwnVariables), std::end(kOwnVariables), name.text()) !=
        std::end(kOwnVariables)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", name.text(), "' is given by the conversation itself"));
    }
    context->Set(name, value);
  }
  std::vector<Value> messages;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    *field = absl::StrCat("messages[", i, "]");
    ASSIGN_OR_RETURN(Value message, MessageOf(conversation.messages[i], depth, field));
    messages.push_back(std::move(message));
  }
  *field = "tools_json";
  ASSIGN_OR_RETURN(const Value tools, ObjectsOf(conversation.tools_json, depth));
  *field = "documents_json";
  ASSIGN_OR_RETURN(const Value documents, ObjectsOf(conversation.documents_json, depth));
  Set("messages", jinja::PlainList(std::move(messages)), context.get());
  Set("tools", tools, context.get());
  Set("documents", documents, context.get());
  Set("add_generation_prompt", Value::Bool(conversation.add_generation_prompt), context.get());
  const JinjaTemplate& used = tool_use_ && !tools.is_none() ? *tool_use_ : plain_;
  *field = "messages";
  auto text = used.Render(jinja::PlainDict(std::move(context)), conversation.now);
  if (!text.ok()) return Prefixed(text.status(), "chat template");
  return text;
}

}  // namespace pergola
