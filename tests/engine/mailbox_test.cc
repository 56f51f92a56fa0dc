#include "coordinator/engine/mailbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace pergola {
namespace {

Mailbox::Delivery Token(int32_t id, const std::string& text) {
  Mailbox::Delivery delivery;
  delivery.ids.push_back(id);
  delivery.text = text;
  return delivery;
}

Mailbox::Delivery TheEnd(absl::Status status) {
  Mailbox::Delivery delivery;
  delivery.ended = true;
  delivery.status = std::move(status);
  return delivery;
}

TEST(MailboxTest, CoalescesUntilTaken) {
  int notified = 0;
  Mailbox mailbox([&] { ++notified; });
  mailbox.Put(Token(1, "a"));
  mailbox.Put(Token(2, "b"));
  const Mailbox::Delivery delivery = mailbox.Take();
  EXPECT_EQ(delivery.ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(delivery.text, "ab");
  EXPECT_EQ(notified, 1);
}

TEST(MailboxTest, NotifiesAgainAfterItWasEmptied) {
  int notified = 0;
  Mailbox mailbox([&] { ++notified; });
  mailbox.Put(Token(1, ""));
  mailbox.Take();
  mailbox.Put(Token(2, ""));
  EXPECT_EQ(notified, 2);
}

TEST(MailboxTest, TakingFromAnEmptyOneGivesNothing) {
  Mailbox mailbox([] {});
  EXPECT_TRUE(mailbox.Take().empty());
}

TEST(MailboxTest, AnEndAloneNotifiesAndCarriesItsStatus) {
  int notified = 0;
  Mailbox mailbox([&] { ++notified; });
  mailbox.Put(TheEnd(absl::CancelledError("why")));
  EXPECT_EQ(notified, 1);
  const Mailbox::Delivery delivery = mailbox.Take();
  EXPECT_TRUE(delivery.ended);
  EXPECT_EQ(delivery.status.code(), absl::StatusCode::kCancelled);
}

TEST(MailboxTest, TellsTheWeakerOfTwoContinuities) {
  Mailbox mailbox([] {});
  Mailbox::Delivery semantic = Token(1, "");
  semantic.continuity = v1::CONTINUITY_SEMANTIC;
  Mailbox::Delivery exact = Token(2, "");
  exact.continuity = v1::CONTINUITY_EXACT;
  mailbox.Put(std::move(semantic));
  mailbox.Put(std::move(exact));
  EXPECT_EQ(mailbox.Take().continuity, v1::CONTINUITY_SEMANTIC);
}

TEST(MailboxTest, KeepsTheInfoOfTheFirstDelivery) {
  Mailbox mailbox([] {});
  Mailbox::Delivery first;
  first.info.emplace().set_seed(7);
  mailbox.Put(std::move(first));
  mailbox.Put(Token(1, ""));
  const Mailbox::Delivery delivery = mailbox.Take();
  ASSERT_TRUE(delivery.info.has_value());
  EXPECT_EQ(delivery.info->seed(), 7U);
}

TEST(MailboxTest, IsFullAtItsBoundOfTokensUntilTaken) {
  Mailbox mailbox([] {}, {2, 1000});
  EXPECT_FALSE(mailbox.Put(Token(1, "a")));
  EXPECT_FALSE(mailbox.full());
  EXPECT_TRUE(mailbox.Put(Token(2, "b")));
  EXPECT_TRUE(mailbox.Put(Token(3, "c"))) << "what is in flight still goes in";
  EXPECT_TRUE(mailbox.full());
  EXPECT_EQ(mailbox.Take().ids.size(), 3U);
  EXPECT_FALSE(mailbox.full());
}

TEST(MailboxTest, IsFullAtItsBoundOfBytes) {
  Mailbox mailbox([] {}, {1000, 100});
  EXPECT_FALSE(mailbox.Put(Token(1, std::string(95, 'a'))));
  EXPECT_TRUE(mailbox.Put(Token(2, "")));
  mailbox.Take();
  Mailbox::Delivery scored;
  scored.prompt_logprobs.resize(100 / sizeof(v1::Logprobs) + 1);
  EXPECT_TRUE(mailbox.Put(std::move(scored)));
}

TEST(MailboxTest, CoalescesLogprobsInOrder) {
  Mailbox mailbox([] {});
  for (int i = 0; i < 3; ++i) {
    Mailbox::Delivery delivery = Token(i, "");
    delivery.logprobs.emplace_back().set_logprob(static_cast<float>(i));
    delivery.prompt_logprobs.emplace_back().set_logprob(static_cast<float>(10 + i));
    mailbox.Put(std::move(delivery));
  }
  const Mailbox::Delivery all = mailbox.Take();
  ASSERT_EQ(all.logprobs.size(), 3U);
  EXPECT_EQ(all.logprobs[2].logprob(), 2.0F);
  ASSERT_EQ(all.prompt_logprobs.size(), 3U);
  EXPECT_EQ(all.prompt_logprobs[0].logprob(), 10.0F);
}

TEST(MailboxTest, LogprobsOfThePromptAloneNotify) {
  int notified = 0;
  Mailbox mailbox([&] { ++notified; });
  Mailbox::Delivery delivery;
  delivery.prompt_logprobs.emplace_back();
  mailbox.Put(std::move(delivery));
  EXPECT_EQ(notified, 1);
}

TEST(MailboxDeathTest, NothingMayFollowTheEnd) {
  Mailbox mailbox([] {});
  mailbox.Put(TheEnd(absl::OkStatus()));
  mailbox.Take();
  EXPECT_DEATH(mailbox.Put(Token(1, "")), "ended_");
}

TEST(MailboxTest, LosesNothingBetweenTwoThreads) {
  std::atomic<int> notified{0};
  Mailbox mailbox([&] { ++notified; });
  constexpr int32_t kTokens = 20'000;
  std::thread writer([&] {
    for (int32_t id = 0; id < kTokens; ++id) mailbox.Put(Token(id, ""));
    mailbox.Put(TheEnd(absl::OkStatus()));
  });
  int32_t expected = 0;
  bool ended = false;
  while (!ended) {
    const Mailbox::Delivery delivery = mailbox.Take();
    for (const int32_t id : delivery.ids) ASSERT_EQ(id, expected++);
    ended = delivery.ended;
  }
  writer.join();
  EXPECT_EQ(expected, kTokens);
  EXPECT_GE(notified.load(), 1);
}

}  // namespace
}  // namespace pergola
