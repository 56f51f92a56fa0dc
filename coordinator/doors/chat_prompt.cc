#include "coordinator/doors/chat_prompt.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/wire.h"
#include "coordinator/text/chat_template.h"

namespace pergola {
namespace {

google::rpc::Status CannotChat(const absl::Status& why) {
  return ToRpcStatus(absl::FailedPreconditionError(why.message()), "NO_CHAT_TEMPLATE");
}

// What the message's own words cannot carry.
void CheckOptions(const v1::GenerateRequest& generate, Violations* violations) {
  if (generate.prompt_case() != v1::GenerateRequest::PROMPT_NOT_SET) {
    violations->Add(absl::StrCat(kChatFieldPrefix, "prompt"),
                    "set; the messages are the prompt of a conversation");
  }
  if (generate.has_resume()) {
    violations->Add(absl::StrCat(kChatFieldPrefix, "resume"),
                    "set; a broken answer is resumed by Generate");
  }
}

void CheckBytes(const v1::ChatRequest& chat, Violations* violations) {
  uint64_t json =
      chat.tools_json().size() + chat.documents_json().size() + chat.variables_json().size();
  uint64_t texts = 0;
  for (const v1::ChatMessage& message : chat.messages()) {
    json += message.fields_json().size();
    texts += message.role().size() + message.content().size() + message.name().size();
  }
  if (texts + json > kMaxTextBytes) {
    violations->Add(kChatPromptPath, absl::StrCat(texts + json,
                                                  " bytes of the conversation exceed "
                                                  "the limit of ",
                                                  kMaxTextBytes, " bytes"));
  }
  if (json > kMaxChatJsonBytes) {
    violations->Add(
        "", absl::StrCat(json, " bytes of JSON exceed the limit of ", kMaxChatJsonBytes, " bytes"));
  }
}

Conversation TakeConversation(const std::tm& now, v1::ChatRequest* chat) {
  Conversation conversation;
  for (v1::ChatMessage& message : *chat->mutable_messages()) {
    ChatMessage& taken = conversation.messages.emplace_back();
    taken.role = std::move(*message.mutable_role());
    if (message.has_content()) taken.content = std::move(*message.mutable_content());
    if (message.has_name()) taken.name = std::move(*message.mutable_name());
    taken.fields_json = std::move(*message.mutable_fields_json());
  }
  conversation.tools_json = std::move(*chat->mutable_tools_json());
  conversation.documents_json = std::move(*chat->mutable_documents_json());
  conversation.variables_json = std::move(*chat->mutable_variables_json());
  conversation.add_generation_prompt =
      !chat->has_add_generation_prompt() || chat->add_generation_prompt();
  conversation.now = now;
  return conversation;
}

}  // namespace

bool ParseChat(std::string_view bytes, v1::ChatRequest* chat, Violations* violations) {
  std::vector<std::string_view> messages;
  const std::string& type = v1::ChatRequest::descriptor()->full_name();
  if (!SplitItems(bytes, kMaxChatMessages, type, &messages, violations)) return false;
  if (messages.size() > kMaxChatMessages) {
    violations->Add(kChatPromptPath, absl::StrCat("more than the limit of ", kMaxChatMessages));
    return false;
  }
  return ParseMessage(bytes, chat, violations);
}

google::rpc::Status BuildChatPrompt(const ServedModel& served, uint64_t vocabulary_size,
                                    const std::tm& now, v1::ChatRequest* chat,
                                    v1::GenerateRequest* request) {
  *request = std::move(*chat->mutable_generate());
  google::rpc::Status named = CheckModelName(request->model(), *served.parts);
  if (named.code() != 0) return named;
  if (!served.chat->ok()) return CannotChat(served.chat->status());
  Violations violations;
  CheckOptions(*request, &violations);
  CheckBytes(*chat, &violations);
  if (!violations.empty()) return violations.ToStatus();

  std::string field;
  auto text = (*served.chat)->Render(TakeConversation(now, chat), &field);
  if (!text.ok()) {
    violations.Add(field, std::string(ToStd(text.status().message())));
    return violations.ToStatus();
  }
  // The template has written every special token itself.
  auto ids = served.tokenizer->Encode(*text, /*add_special_tokens=*/false);
  if (!ids.ok()) {
    violations.Add(kChatPromptPath, std::string(ToStd(ids.status().message())));
  } else if (ids->empty()) {
    violations.Add(kChatPromptPath, "render to no token; at least 1 is needed");
  } else {
    CheckIds(*ids, vocabulary_size, kChatPromptPath, &violations);
  }
  if (!violations.empty()) return violations.ToStatus();
  request->mutable_tokens()->mutable_ids()->Add(ids->begin(), ids->end());
  return {};
}

}  // namespace pergola
