// The Chat call: a conversation in, the stream of a Generate out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/limits.h"
#include "coordinator/doors/chat_prompt.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class ChatTest : public CoordinatorTest {
 protected:
  static v1::ChatRequest Say(const std::string& text, uint32_t max_new_tokens) {
    v1::ChatRequest chat;
    v1::ChatMessage* message = chat.add_messages();
    message->set_role("user");
    message->set_content(text);
    chat.mutable_generate()->mutable_stop()->set_max_new_tokens(max_new_tokens);
    return chat;
  }

  // The ids of a rendered conversation: no BOS before them.
  static std::vector<int32_t> Rendered(const std::string& text) {
    return *ByteTokenizer().Encode(text, /*add_special_tokens=*/false);
  }

  Stream Chat(const v1::ChatRequest& chat) {
    grpc::ClientContext context;
    return ReadAll(*generation_->Chat(&context, chat));
  }

  std::vector<std::string> Refused(const v1::ChatRequest& chat) {
    const Stream stream = Chat(chat);
    EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << stream.status.error_message();
    return ViolationsOf(Details(stream.status));
  }
};

TEST_F(ChatTest, StreamsWhatGenerateStreamsForTheRenderedPrompt) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 20);
  chat.mutable_generate()->set_resumable(true);
  chat.mutable_generate()->set_request_id("mine");
  const Stream answer = Chat(chat);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const std::vector<int32_t> prompt = Rendered("[user]hi[me]");
  const v1::StreamInfo& info = answer.messages.front().info();
  EXPECT_THAT(info.prompt().ids(), ElementsAreArray(prompt));
  EXPECT_EQ(info.request_id(), "mine");
  EXPECT_EQ(answer.text, Continuation(prompt, 20));
  const v1::Finish& finish = answer.messages.back().finish();
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finish.usage().prompt_tokens(), prompt.size());
  EXPECT_EQ(finish.usage().completion_tokens(), 20U);

  v1::GenerateRequest same;
  same.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  same.mutable_stop()->set_max_new_tokens(20);
  EXPECT_EQ(Generate(same).ids, answer.ids);
}

TEST_F(ChatTest, RendersAllMessagesInOrder) {
  StartServing();
  v1::ChatRequest chat = Say("a", 1);
  v1::ChatMessage* message = chat.add_messages();
  message->set_role("tool");
  message->set_fields_json(R"({"content": "b", "tool_call_id": "1"})");
  chat.set_add_generation_prompt(false);
  chat.mutable_generate()->set_resumable(true);
  const Stream answer = Chat(chat);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.messages.front().info().prompt().ids(),
              ElementsAreArray(Rendered("[user]a[tool]b")));
}

TEST_F(ChatTest, SeveralAnswersComeByIndex) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 4);
  chat.mutable_generate()->mutable_sampling()->set_n(2);
  chat.mutable_generate()->mutable_sampling()->set_temperature(1);
  const Stream answer = Chat(chat);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  int finished = 0;
  for (const v1::GenerateResponse& message : answer.messages) finished += message.has_finish();
  EXPECT_EQ(finished, 2);
}

TEST_F(ChatTest, ABrokenAnswerContinuesByGenerate) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 20);
  chat.mutable_generate()->set_resumable(true);
  const Stream whole = Chat(chat);
  ASSERT_TRUE(whole.status.ok());
  v1::GenerateRequest rest = chat.generate();
  const v1::StreamInfo& info = whole.messages.front().info();
  *rest.mutable_resume()->mutable_prompt() = info.prompt();
  for (int i = 0; i < 7; ++i) rest.mutable_resume()->mutable_received()->add_ids(whole.ids[i]);
  rest.mutable_resume()->set_text_bytes(7);
  rest.mutable_resume()->set_numerics_id(info.numerics_id());
  const Stream resumed = Generate(rest);
  ASSERT_TRUE(resumed.status.ok()) << resumed.status.error_message();
  EXPECT_EQ(resumed.text, whole.text.substr(7));
}

TEST_F(ChatTest, ACancelledAnswerFreesItsSlot) {
  StartServing();
  {
    grpc::ClientContext context;
    const auto reader = generation_->Chat(&context, Say("x", 4000));
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0; }));
}

TEST_F(ChatTest, AModelWithoutATemplateIsAFailedPrecondition) {
  parts_.chat_template.clear();
  StartServing();
  const Stream answer = Chat(Say("hi", 1));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(answer.status.error_message(), "the model bytes has no chat template");
  EXPECT_TRUE(Generate(Prompt("hi", 1)).status.ok());
}

TEST_F(ChatTest, AModelWhoseTemplateCannotBeReadIsAFailedPrecondition) {
  parts_.chat_template = "{% include 'other' %}";
  StartServing();
  const Stream answer = Chat(Say("hi", 1));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(answer.status.error_message(),
            "chat template: line 1: the tag 'include' is not supported");
}

TEST_F(ChatTest, WhatTheTemplateRaisesIsToldOfTheMessages) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 1);
  chat.mutable_messages(0)->set_role("nobody");
  EXPECT_THAT(Refused(chat), ElementsAre("messages: chat template: line 1: raised: nobody speaks"));
}

TEST_F(ChatTest, AnotherModelsNameIsNotFound) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 1);
  chat.mutable_generate()->set_model("other");
  EXPECT_EQ(Chat(chat).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ChatTest, WrongFieldsAreToldByTheirPaths) {
  StartServing();
  EXPECT_THAT(Refused({}), ElementsAre("messages: must be at least one message"));
  v1::ChatRequest chat = Say("hi", 1);
  chat.set_tools_json("{");
  EXPECT_THAT(Refused(chat), ElementsAre(HasSubstr("tools_json: it is not JSON at byte")));
  chat = Say("hi", 1);
  chat.mutable_messages(0)->set_fields_json("[]");
  EXPECT_THAT(Refused(chat), ElementsAre("messages[0].fields_json: must be a JSON object"));
  chat = Say("a\xFF", 1);
  EXPECT_THAT(Refused(chat), ElementsAre("messages[0].content: invalid UTF-8 at byte 1"));
  chat = Say("hi", 1);
  chat.mutable_generate()->mutable_sampling()->set_top_p(2);
  EXPECT_THAT(Refused(chat), ElementsAre("generate.sampling.top_p: 2 is not in (0, 1]"));
  chat = Say("hi", 1);
  chat.mutable_generate()->set_text("hi");
  chat.mutable_generate()->mutable_resume();
  EXPECT_THAT(Refused(chat),
              ElementsAre("generate.prompt: set; the messages are the prompt of a conversation",
                          "generate.resume: set; a broken answer is resumed by Generate"));
}

TEST_F(ChatTest, AConversationBeyondTheContextIsToldOfTheMessages) {
  StartServing();
  EXPECT_THAT(Refused(Say(std::string(5000, 'x'), 1)),
              ElementsAre("messages: the prompt's 5010 tokens and 1 new token exceed the context "
                          "length of 4096 tokens"));
}

TEST_F(ChatTest, LimitsOfAConversationAreChecked) {
  StartServing();
  v1::ChatRequest chat = Say("hi", 1);
  for (uint32_t i = 0; i < kMaxChatMessages; ++i) chat.add_messages();
  EXPECT_THAT(Refused(chat), ElementsAre("messages: more than the limit of 4096"));
  chat = Say(std::string(kMaxTextBytes, 'x'), 1);
  EXPECT_THAT(Refused(chat), ElementsAre("messages: 4194308 bytes of the conversation exceed the "
                                         "limit of 4194304 bytes"));
  chat = Say("hi", 1);
  chat.set_variables_json(std::string(kMaxChatJsonBytes + 1, ' '));
  EXPECT_THAT(Refused(chat),
              ElementsAre(": 1048577 bytes of JSON exceed the limit of 1048576 bytes"));
}

TEST(ParseChatTest, BytesThatAreNoChatRequestAreRefused) {
  v1::ChatRequest chat;
  Violations violations;
  EXPECT_FALSE(ParseChat("\x0A\xFF", &chat, &violations));
  EXPECT_THAT(ViolationsOf(violations.ToStatus()),
              ElementsAre(": the 2 bytes are not a pergola.v1.ChatRequest"));
}

}  // namespace
}  // namespace pergola
