#include "coordinator/text/chat_template.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using testing::HasSubstr;

absl::StatusOr<ChatTemplate> Create(const std::string& source, const std::string& config = "") {
  TextParts parts;
  parts.model_name = "tiny";
  parts.chat_template = source;
  parts.tokenizer_config_json = config;
  return ChatTemplate::Create(parts);
}

Conversation Hello() {
  Conversation request;
  request.messages.push_back({"user", "hello", ""});
  return request;
}

std::string RenderBy(const ChatTemplate& chat, const Conversation& request) {
  std::string field;
  const auto text = chat.Render(request, &field);
  return text.ok() ? *text : text.status().ToString() + " in " + field;
}

std::string Render(const std::string& source, const Conversation& request) {
  const auto chat = Create(source);
  return chat.ok() ? RenderBy(*chat, request) : chat.status().ToString();
}

constexpr char kAll[] =
    "{{ messages | tojson }} {{ tools }} {{ documents }} {{ add_generation_prompt }}";

TEST(ChatTemplateTest, GivesTheTemplateItsVariables) {
  EXPECT_EQ(Render(kAll, Hello()), R"([{"role": "user", "content": "hello"}] None None True)");
  Conversation request = Hello();
  request.tools_json = R"([{"b": 1, "a": 2}])";
  request.documents_json = R"([{"text": "t"}])";
  request.add_generation_prompt = false;
  EXPECT_EQ(Render(kAll, request),
            R"([{"role": "user", "content": "hello"}] [{'b': 1, 'a': 2}] [{'text': 't'}] False)");
}

TEST(ChatTemplateTest, FieldsJoinTheMessageAndNoneVanishes) {
  Conversation request;
  request.messages.push_back(
      {"assistant", {}, R"({"content": null, "name": "Ann", "tool_calls": [{"id": 1}]})"});
  EXPECT_EQ(Render("{{ messages[0] | tojson }}", request),
            R"({"role": "assistant", "name": "Ann", "tool_calls": [{"id": 1}]})");
}

TEST(ChatTemplateTest, AMessageMayHaveAName) {
  Conversation request = Hello();
  request.messages[0].name = "Ann";
  EXPECT_EQ(Render("{{ messages[0] | tojson }}", request),
            R"({"role": "user", "content": "hello", "name": "Ann"})");
}

TEST(ChatTemplateTest, ReasoningGoesByAllItsNames) {
  Conversation request;
  request.messages.push_back({"assistant", "x", R"({"reasoning": "r"})"});
  EXPECT_EQ(
      Render("{{ messages[0] | tojson }}", request),
      R"({"thinking": "r", "role": "assistant", "content": "x", "reasoning": "r", "reasoning_content": "r"})");
}

TEST(ChatTemplateTest, SpecialTokensComeFromTheConfiguration) {
  const auto chat =
      Create("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}",
             R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null})");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(RenderBy(*chat, Hello()), "<s></s>False");
}

TEST(ChatTemplateTest, SpecialTokensComeFromGguf) {
  TextParts parts;
  parts.chat_template = "{{ bos_token }}|{{ eos_token }}|{{ unk_token is defined }}";
  parts.gguf.emplace();
  parts.gguf->tokens = {"<a>", "<b>"};
  parts.gguf->bos_id = 1;
  parts.gguf->eos_id = 0;
  parts.gguf->unknown_id = 7;
  const auto chat = ChatTemplate::Create(parts);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(RenderBy(*chat, Hello()), "<b>|<a>|False");
}

TEST(ChatTemplateTest, VariablesOverrideSpecialTokens) {
  Conversation request = Hello();
  request.variables_json = R"({"bos_token": "B", "enable_thinking": false})";
  const auto chat = Create("{{ bos_token }}{{ enable_thinking }}", R"({"bos_token": "<s>"})");
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(RenderBy(*chat, request), "BFalse");
}

TEST(ChatTemplateTest, ToolsUseTheTemplateMadeForThem) {
  const auto chat = Create("plain", R"({"chat_template": [{"name": "default", "template": "plain"},
                                        {"name": "tool_use", "template": "with tools"}]})");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(RenderBy(*chat, Hello()), "plain");
  Conversation request = Hello();
  request.tools_json = "[]";
  EXPECT_EQ(RenderBy(*chat, request), "with tools");
}

TEST(ChatTemplateTest, ListIsIgnoredWhereAFileReplacesIt) {
  const auto chat = Create("file", R"({"chat_template": [{"name": "default", "template": "plain"},
                                       {"name": "tool_use", "template": "with tools"}]})");
  ASSERT_TRUE(chat.ok());
  Conversation request = Hello();
  request.tools_json = "[]";
  EXPECT_EQ(RenderBy(*chat, request), "file");
}

TEST(ChatTemplateTest, ModelWithoutTemplateIsNotFound) {
  const auto chat = Create("");
  EXPECT_EQ(chat.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("tiny has no chat template"));
}

TEST(ChatTemplateTest, BrokenTemplatesAreRefusedWhenCreated) {
  EXPECT_THAT(std::string(Create("{% if %}").status().message()),
              HasSubstr("chat template: line 1: "));
  EXPECT_THAT(std::string(Create("p", R"({"chat_template": [{"name": "default", "template": "p"},
                                  {"name": "tool_use", "template": "{{"}]})")
                              .status()
                              .message()),
              HasSubstr("chat template tool_use: line 1: "));
  EXPECT_THAT(std::string(Create("p", "[]").status().message()),
              HasSubstr("tokenizer_config.json is not an object"));
  EXPECT_THAT(std::string(Create("p", "{").status().message()), HasSubstr("it is not JSON"));
}

TEST(ChatTemplateTest, RequestsThatAreNoConversationAreRefusedByPath) {
  EXPECT_THAT(Render("x", {}), HasSubstr("must be at least one message in messages"));
  const auto with = [](auto change) {
    Conversation request = Hello();
    change(&request);
    return Render("x", request);
  };
  EXPECT_THAT(with([](Conversation* r) { r->tools_json = "{}"; }),
              HasSubstr("must be a JSON array of objects in tools_json"));
  EXPECT_THAT(with([](Conversation* r) { r->tools_json = "[1]"; }),
              HasSubstr("must be a JSON array of objects in tools_json"));
  EXPECT_THAT(with([](Conversation* r) { r->documents_json = "["; }),
              HasSubstr("it is not JSON at byte 2 in documents_json"));
  EXPECT_THAT(with([](Conversation* r) { r->variables_json = "[]"; }),
              HasSubstr("must be a JSON object in variables_json"));
  EXPECT_THAT(with([](Conversation* r) { r->variables_json = R"({"messages": 1})"; }),
              HasSubstr("'messages' is given by the conversation itself"));
  EXPECT_THAT(with([](Conversation* r) { r->messages[0].fields_json = "3"; }),
              HasSubstr("must be a JSON object in messages[0].fields_json"));
  EXPECT_THAT(with([](Conversation* r) { r->messages[0].content = "\xFF"; }),
              HasSubstr("must be valid UTF-8 in messages[0].content"));
  EXPECT_THAT(with([](Conversation* r) { r->messages[0].role = "\xFF"; }),
              HasSubstr("must be valid UTF-8 in messages[0].role"));
  EXPECT_THAT(with([](Conversation* r) { r->messages[0].name = "\xFF"; }),
              HasSubstr("must be valid UTF-8 in messages[0].name"));
}

TEST(ChatTemplateTest, WhatTheTemplateRaisesReachesTheCaller) {
  EXPECT_EQ(Render("\n{{ raise_exception('no ' ~ messages[0].role) }}", Hello()),
            "INVALID_ARGUMENT: chat template: line 2: raised: no user in messages");
}

TEST(ChatTemplateTest, TimeIsTheRequests) {
  Conversation request = Hello();
  request.now.tm_year = 126;
  request.now.tm_mon = 10;
  request.now.tm_mday = 22;
  EXPECT_EQ(Render("{{ strftime_now('%d %b %Y%z%f') }}", request), "22 Nov 2026000000");
}

}  // namespace
}  // namespace pergola
