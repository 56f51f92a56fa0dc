// A model's chat template: a conversation as the text that the model continues, rendered as
// transformers' apply_chat_template does. Not for tokenizing that text: it already holds the
// special tokens, so it is encoded without adding any.
#pragma once

#include <ctime>
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
  // Further fields as a JSON object, or empty: name, tool_calls, content in parts, ... A field
  // named role or content replaces the one above.
  std::string fields_json;
};

struct ChatRequest {
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

  // INVALID_ARGUMENT for a request that is no conversation or that the template refuses (then
  // "chat template: line N: raised: its message"), RESOURCE_EXHAUSTED for an exceeded budget.
  absl::StatusOr<std::string> Render(const ChatRequest& request) const;

 private:
  explicit ChatTemplate(JinjaTemplate plain, const JinjaLimits& limits)
      : plain_(std::move(plain)), limits_(limits) {}

  JinjaTemplate plain_;
  std::optional<JinjaTemplate> tool_use_;
  JinjaLimits limits_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;  // "bos_token" and its text
};

}  // namespace pergola
