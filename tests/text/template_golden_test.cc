// Templates and conversations as jinja2 renders them in the environment of transformers'
// apply_chat_template (scripts/goldens_templates.py).
#include <fstream>
#include <sstream>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/jinja/json_value.h"
#include "coordinator/text/jinja/template.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using Json = nlohmann::ordered_json;

std::string ReadFile(const std::string& name) {
  const std::string path = std::string(PERGOLA_TEST_DATA) + "/golden/templates/" + name;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

// Sunday, 2026-11-22 09:08:07, as in the goldens.
std::tm GoldenTime() {
  std::tm time = {};
  time.tm_year = 126;
  time.tm_mon = 10;
  time.tm_mday = 22;
  time.tm_hour = 9;
  time.tm_min = 8;
  time.tm_sec = 7;
  time.tm_yday = 325;
  return time;
}

// The golden has the text, the message that the template raised, or any other error.
void ExpectOutcome(const Json& golden, const absl::StatusOr<std::string>& rendered) {
  if (golden.contains("text")) {
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, golden["text"].get<std::string>());
    return;
  }
  ASSERT_FALSE(rendered.ok()) << *rendered;
  const std::string message(rendered.status().message());
  const size_t raised = message.find(": raised: ");
  if (golden.contains("raised")) {
    ASSERT_NE(raised, std::string::npos) << message;
    EXPECT_EQ(message.substr(raised + 10), golden["raised"].get<std::string>());
  } else {
    EXPECT_EQ(raised, std::string::npos) << message;
    EXPECT_NE(message.find("line 1: "), std::string::npos) << message;
  }
}

TEST(TemplateGoldenTest, FeaturesEqualJinja) {
  const Json golden = Json::parse(ReadFile("features.json"));
  const auto context = jinja::ParseJson(golden["context"].get<std::string>(), 100);
  ASSERT_TRUE(context.ok()) << context.status();
  ASSERT_GT(golden["cases"].size(), 100);
  for (const Json& item : golden["cases"]) {
    SCOPED_TRACE(item["name"].get<std::string>());
    const auto parsed = JinjaTemplate::Parse(item["template"].get<std::string>());
    if (!parsed.ok()) {
      ExpectOutcome(item, parsed.status());
    } else {
      ExpectOutcome(item, parsed->Render(*context, GoldenTime()));
    }
  }
}

TEST(TemplateGoldenTest, ConversationsEqualTransformers) {
  const Json golden = Json::parse(ReadFile("chats.json"));
  ASSERT_GT(golden["cases"].size(), 80);
  for (const Json& item : golden["cases"]) {
    SCOPED_TRACE(item["template"].get<std::string>() + " " + item["messages"].dump());
    TextParts parts;
    parts.chat_template = ReadFile(item["template"].get<std::string>());
    parts.tokenizer_config_json = golden["tokens"].dump();
    const auto chat = ChatTemplate::Create(parts);
    ASSERT_TRUE(chat.ok()) << chat.status();
    Conversation request;
    for (const Json& message : item["messages"]) {
      request.messages.push_back({message["role"].get<std::string>(), {}, message.dump()});
    }
    if (item["tools"].get<bool>()) request.tools_json = golden["tools"].dump();
    request.add_generation_prompt = item["add_generation_prompt"].get<bool>();
    request.now = GoldenTime();
    std::string field;
    ExpectOutcome(item, chat->Render(request, &field));
  }
}

}  // namespace
}  // namespace pergola
