// Renders cases for scripts/judge_templates.py: one JSON object per line of the standard input,
// one per line out. A case has "template" and either "context", a JSON text, or "messages" (with
// "tools", "documents", "variables": JSON texts or empty; "add_generation_prompt";
// "tokenizer_config"), and "now": year, month, day, hour, minute, second. The answer is {"text":
// ...} or {"error": ...}.
#include <ctime>
#include <iostream>
#include <string>

#include "base/status.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/jinja/json_value.h"
#include "coordinator/text/jinja/template.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using Json = nlohmann::ordered_json;

std::tm TimeOf(const Json& fields) {
  std::tm time = {};
  time.tm_year = fields[0].get<int>() - 1900;
  time.tm_mon = fields[1].get<int>() - 1;
  time.tm_mday = fields[2].get<int>();
  time.tm_hour = fields[3].get<int>();
  time.tm_min = fields[4].get<int>();
  time.tm_sec = fields[5].get<int>();
  (void)timegm(&time);  // fills in the days of week and year
  return time;
}

absl::StatusOr<std::string> RenderContext(const Json& item) {
  ASSIGN_OR_RETURN(const JinjaTemplate parsed,
                   JinjaTemplate::Parse(item["template"].get<std::string>()));
  ASSIGN_OR_RETURN(const jinja::Value context,
                   jinja::ParseJson(item["context"].get<std::string>(), 100));
  return parsed.Render(context, TimeOf(item["now"]));
}

absl::StatusOr<std::string> RenderChat(const Json& item) {
  TextParts parts;
  parts.chat_template = item["template"].get<std::string>();
  parts.tokenizer_config_json = item["tokenizer_config"].get<std::string>();
  ASSIGN_OR_RETURN(const ChatTemplate chat, ChatTemplate::Create(parts));
  Conversation request;
  for (const Json& message : item["messages"]) {
    ChatMessage& added = request.messages.emplace_back();
    added.role = message["role"].get<std::string>();
    added.fields_json = message.dump();
  }
  request.tools_json = item["tools"].get<std::string>();
  request.documents_json = item["documents"].get<std::string>();
  request.variables_json = item["variables"].get<std::string>();
  request.add_generation_prompt = item["add_generation_prompt"].get<bool>();
  request.now = TimeOf(item["now"]);
  std::string field;
  return chat.Render(request, &field);
}

int Main() {
  for (std::string line; std::getline(std::cin, line);) {
    const Json item = Json::parse(line);
    const auto text = item.contains("context") ? RenderContext(item) : RenderChat(item);
    const Json answer =
        text.ok() ? Json{{"text", *text}} : Json{{"error", std::string(text.status().message())}};
    std::cout << answer.dump() << '\n';
  }
  return 0;
}

}  // namespace
}  // namespace pergola

int main() {
  return pergola::Main();
}
