// A model's chat template: a conversation as the text that the model continues, rendered as
// transformers' apply_chat_template does. Not for tokenizing that text: it already holds the
// special tokens, so it is encoded without adding any.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/template.h"
#include "model/text_parts.h"

namespace pergola {

struct ChatMessage {
  std::string role;
  std::optional<std::string> content;
  // Further fields as a JSON object, or empty: tool_calls, content in parts, ... A field that is
  // named here as well replaces the one above or below.
  std::string fields_json;
  std::optional<std::string> name = {};
};

struct Conversation {
  std::vector<ChatMessage> messages;  // at least one
  std::string tools_json;             // an array of objects, or empty: no tools
  std::string documents_json;         // an array of objects, or empty: no documents
  std::string variables_json;         // an object of further variables of the template, or empty
  bool add_generation_prompt = true;
  std::tm now = {};  // what a template that asks for the date is told
};

// Immutable, any thread.
class ChatTemplate {
 public:
  // NOT_FOUND if the model has no chat template, INVALID_ARGUMENT if it is broken. Where the model
  // names several, "tool_use" serves requests with tools and "default" all others.
  static absl::StatusOr<ChatTemplate> Create(const TextParts& parts,
                                             const JinjaLimits& limits = {});

  // INVALID_ARGUMENT for what is no conversation or what the template refuses (then "chat template:
  // line N: raised: its message"), RESOURCE_EXHAUSTED for an exceeded budget. `field` then says
  // which part is at fault, by its name above: "messages[3].fields_json".
  absl::StatusOr<std::string> Render(const Conversation& conversation, std::string* field) const;

 private:
  explicit ChatTemplate(JinjaTemplate plain, const JinjaLimits& limits)
      : plain_(std::move(plain)), limits_(limits) {}

  JinjaTemplate plain_;
  std::shared_ptr<const JinjaTemplate> tool_use_;  // null: there is none
  JinjaLimits limits_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;  // "bos_token" and its text
};

}  // namespace pergola
