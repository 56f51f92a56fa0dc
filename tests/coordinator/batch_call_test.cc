#include "coordinator/doors/batch_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class BatchTest : public CoordinatorTest {
 protected:
  grpc::Status Call(const v1::GenerateBatchRequest& request) {
    grpc::ClientContext context;
    return generation_->GenerateBatch(&context, request, &response_);
  }
  v1::GenerateBatchResponse response_;
};

TEST_F(BatchTest, AnswersInOrderEachWithItsOwnStatus) {
  StartServing();
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt("one", 50);
  *batch.add_requests() = Prompt("two", 0);
  *batch.add_requests() = Prompt("\xff", 1);
  *batch.add_requests() = Prompt("four", 5);
  const grpc::Status status = Call(batch);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response_.results_size(), 4);
  EXPECT_EQ(response_.results(0).completions(0).text(), Continuation(PromptIds("one"), 50));
  EXPECT_EQ(response_.results(0).status().code(), 0);
  EXPECT_EQ(response_.results(0).info().prompt_token_count(), 4U);
  EXPECT_EQ(response_.results(0).completions(0).finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(ViolationsOf(response_.results(1).status()),
              ElementsAre(HasSubstr("requests[1].stop.max_new_tokens: 0")));
  EXPECT_THAT(response_.results(1).completions(), IsEmpty());
  EXPECT_THAT(ViolationsOf(response_.results(2).status()),
              ElementsAre("requests[2].text: invalid UTF-8 at byte 0"));
  EXPECT_EQ(response_.results(3).completions(0).text(), Continuation(PromptIds("four"), 5));
}

TEST_F(BatchTest, FailsOnlyForItsOwnLimits) {
  StartServing();
  EXPECT_THAT(ViolationsOf(Details(Call({}))), ElementsAre("requests: empty; 1 to 256 are needed"));
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 256; ++i) batch.add_requests();
  EXPECT_TRUE(Call(batch).ok()) << "256 wrong items are 256 answers";
  EXPECT_EQ(response_.results_size(), 256);
  batch.add_requests();
  EXPECT_THAT(ViolationsOf(Details(Call(batch))),
              ElementsAre("requests: more than the limit of 256"));
}

TEST_F(BatchTest, CancelReachesEveryItem) {
  StartServing();
  group_->SetPaused(true);
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 20; ++i) *batch.add_requests() = Prompt("x", 4000);
  grpc::ClientContext context;
  std::thread call([&] { generation_->GenerateBatch(&context, batch, &response_); });
  EXPECT_TRUE(WaitFor([&] { return Status().requests_total() == 20; }));
  context.TryCancel();
  call.join();
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] {
    const v1::StatusResponse status = Status();
    return status.running() == 0 && status.queued() == 0 && status.groups(0).blocks_used() == 0;
  }));
}

TEST_F(BatchTest, TheDeadlineReachesEveryItem) {
  StartServing();
  group_->SetPaused(true);
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 20; ++i) *batch.add_requests() = Prompt("x", 4000);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(generation_->GenerateBatch(&context, batch, &response_).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0 && Status().queued() == 0; }));
}

TEST_F(BatchTest, GathersEverySequenceOfAnItem) {
  StartServing();
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt("n", 6);
  batch.mutable_requests(0)->mutable_sampling()->set_temperature(1);
  batch.mutable_requests(0)->mutable_sampling()->set_n(3);
  ASSERT_TRUE(Call(batch).ok());
  const v1::GenerateBatchResult& result = response_.results(0);
  ASSERT_EQ(result.completions_size(), 3);
  for (uint32_t i = 0; i < 3; ++i) {
    const v1::Completion& completion = result.completions(static_cast<int>(i));
    EXPECT_EQ(completion.text(), Continuation(PromptIds("n"), 6, i));
    EXPECT_EQ(completion.finish().reason(), v1::FINISH_REASON_LENGTH);
  }
}

TEST_F(BatchTest, EndsTheItemWhoseResultsNoLongerFit) {
  server_options_.max_held_result_bytes = 4000;
  StartServing();
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt("short", 5);
  *batch.add_requests() = Prompt("long", 4000);
  ASSERT_TRUE(Call(batch).ok());
  EXPECT_EQ(response_.results(0).completions(0).text(), Continuation(PromptIds("short"), 5));
  EXPECT_EQ(response_.results(1).status().code(), 8) << "RESOURCE_EXHAUSTED";
  EXPECT_THAT(response_.results(1).status().message(), HasSubstr("the limit of 4000 bytes"));
  ASSERT_EQ(response_.results(1).completions_size(), 1) << "what there was room for";
  const std::string& text = response_.results(1).completions(0).text();
  EXPECT_EQ(text, Continuation(PromptIds("long"), 4000).substr(0, text.size()));
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0; }));
}

}  // namespace
}  // namespace pergola
