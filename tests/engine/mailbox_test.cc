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
