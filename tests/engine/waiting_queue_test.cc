#include "coordinator/engine/waiting_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/fixtures.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using Verdict = WaitingQueue::Verdict;

class WaitingQueueTest : public testing::Test {
 protected:
  Sequence& Join(const std::string& tenant, TimeUs submitted = 0, int32_t priority = 0) {
    sequences_.push_back(MakeSequence(sequences_.size() + 1, 10, 10));
    Sequence& sequence = *sequences_.back();
    sequence.request.tenant = tenant;
    sequence.request.priority = priority;
    sequence.submitted = submitted;
    queue_.Join(sequence);
    queue_.Add(sequence);
    return sequence;
  }
  // Serves the next one and charges its tenant; 0 if nobody waits.
  SequenceId Serve(uint64_t tokens) {
    Sequence* next = queue_.First([](Sequence&) { return Verdict::kTake; });
    if (next == nullptr) return 0;
    queue_.Remove(*next);
    queue_.Served(*next);
    queue_.Charge(*next, tokens);
    return next->id;
  }
  std::vector<SequenceId> Order() {
    std::vector<SequenceId> ids;
    queue_.First([&](Sequence& sequence) {
      ids.push_back(sequence.id);
      return Verdict::kSkip;
    });
    return ids;
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
  WaitingQueue queue_;
};

TEST_F(WaitingQueueTest, IsFirstComeFirstServedAmongEquals) {
  for (TimeUs time = 0; time < 3; ++time) Join("", time);
  EXPECT_THAT(Order(), ElementsAre(1, 2, 3));
  EXPECT_EQ(queue_.bytes(), 3 * 40);
  EXPECT_EQ(queue_.size(), 3U);
}

TEST_F(WaitingQueueTest, ServesTheHigherPriorityFirst) {
  Join("", 0, -5);
  Join("", 0, 0);
  Join("", 0, 7);
  EXPECT_THAT(Order(), ElementsAre(3, 2, 1));
}

TEST_F(WaitingQueueTest, WaitingRaisesAPriorityByOnePointPerAgingTime) {
  Join("", 0, 0);
  Join("", 3 * kAgingUsPerPoint - 1, 3);
  Join("", 3 * kAgingUsPerPoint + 1, 3);
  EXPECT_THAT(Order(), ElementsAre(2, 1, 3));
}

TEST_F(WaitingQueueTest, TheLowestPriorityIsServedAfterTwoHundredPointsOfWaiting) {
  Sequence& low = Join("", 0, kMinPriority);
  TimeUs now = 0;
  // A stream of newcomers of the highest priority, each served before the next comes.
  for (; now <= 200 * kAgingUsPerPoint; now += kAgingUsPerPoint / 2) {
    Join("", now, kMaxPriority);
    if (Serve(1) == low.id) break;
  }
  Join("", now + kAgingUsPerPoint, kMaxPriority);
  EXPECT_TRUE(Serve(1) == low.id || now <= 200 * kAgingUsPerPoint);
}

TEST_F(WaitingQueueTest, APriorityOutOfRangeCountsAsTheNearestOne) {
  Join("", 0, INT32_MIN);
  Join("", 0, INT32_MAX);
  EXPECT_EQ(sequences_[0]->rank, -int64_t{kMinPriority} * kAgingUsPerPoint);
  EXPECT_EQ(sequences_[1]->rank, -int64_t{kMaxPriority} * kAgingUsPerPoint);
}

TEST_F(WaitingQueueTest, SharesTokensEvenlyWhoeverAsksForMore) {
  for (int i = 0; i < 100; ++i) Join("greedy");
  for (int i = 0; i < 10; ++i) Join("modest");
  std::map<std::string, int> served;
  for (int i = 0; i < 20; ++i) ++served[sequences_[Serve(100) - 1]->request.tenant];
  EXPECT_EQ(served["greedy"], 10);
  EXPECT_EQ(served["modest"], 10);
}

TEST_F(WaitingQueueTest, CountsTokensNotSequences) {
  for (int i = 0; i < 40; ++i) Join(i < 20 ? "long" : "short");
  std::map<std::string, int> served;
  for (int i = 0; i < 22; ++i) {
    Sequence* next = queue_.First([](Sequence&) { return Verdict::kTake; });
    const std::string tenant = next->request.tenant;
    Serve(tenant == "long" ? 1000 : 100);
    ++served[tenant];
  }
  EXPECT_EQ(served["long"], 2);
  EXPECT_EQ(served["short"], 20);
}

TEST_F(WaitingQueueTest, APriorityTakesNothingFromOtherTenants) {
  for (int i = 0; i < 10; ++i) Join("loud", 0, kMaxPriority);
  for (int i = 0; i < 10; ++i) Join("quiet", 0, kMinPriority);
  int quiet = 0;
  for (int i = 0; i < 10; ++i) quiet += sequences_[Serve(10) - 1]->request.tenant == "quiet";
  EXPECT_EQ(quiet, 5);
}

TEST_F(WaitingQueueTest, AbsenceEarnsNoCredit) {
  for (int i = 0; i < 20; ++i) Join("old");
  for (int i = 0; i < 10; ++i) Serve(1000);
  for (int i = 0; i < 20; ++i) Join("new");
  std::map<std::string, int> served;
  for (int i = 0; i < 10; ++i) ++served[sequences_[Serve(1000) - 1]->request.tenant];
  EXPECT_GE(served["old"], 4) << "the newcomer is not owed what it never asked for";
}

TEST_F(WaitingQueueTest, LeavingDoesNotWipeOutWhatWasTaken) {
  Sequence& first = Join("hog");
  Join("other");
  Serve(0);  // "hog" is before "other" by name
  queue_.Charge(first, 5000);
  queue_.Leave(first);
  EXPECT_EQ(queue_.tenant_count(), 2U) << "it is ahead and is remembered";
  Join("hog");
  Join("other");
  EXPECT_EQ(sequences_[Serve(10) - 1]->request.tenant, "other");
  EXPECT_EQ(sequences_[Serve(10) - 1]->request.tenant, "other");
}

TEST_F(WaitingQueueTest, ForgetsTenantsThatAreGoneAndOweNothing) {
  for (int i = 0; i < 100; ++i) {
    Sequence& sequence = Join(absl::StrCat("t", i));
    queue_.Remove(sequence);
    queue_.Leave(sequence);
  }
  EXPECT_EQ(queue_.tenant_count(), 0U);
}

TEST_F(WaitingQueueTest, RemembersABoundedNumberOfTenants) {
  for (size_t i = 0; i < kIdleTenants + 50; ++i) {
    Sequence& sequence = Join(absl::StrCat("t", i));
    queue_.Remove(sequence);
    queue_.Charge(sequence, 10 + i);
    queue_.Leave(sequence);
  }
  EXPECT_LE(queue_.tenant_count(), kIdleTenants);
}

TEST_F(WaitingQueueTest, ASuspectComesAfterThoseBeforeItAndBeforeThoseBehind) {
  Sequence& early = Join("", 1);
  Sequence& suspect = Join("", 0);
  queue_.Remove(suspect);
  suspect.suspect = true;
  suspect.queue_order = 3;
  queue_.Add(suspect);
  Join("", 2);  // id 3
  EXPECT_THAT(Order(), ElementsAre(1, 3, 2)) << "one that came before still waits";
  queue_.Remove(early);
  EXPECT_THAT(Order(), ElementsAre(2, 3));
}

TEST_F(WaitingQueueTest, StopsWhereItIsTold) {
  Join("");
  Join("");
  int asked = 0;
  EXPECT_EQ(queue_.First([&](Sequence&) {
    ++asked;
    return Verdict::kStop;
  }),
            nullptr);
  EXPECT_EQ(asked, 1);
}

TEST(KeepsBlocksTest, AnAwakeReaderThenThePoorerTenantThenTheOlder) {
  WaitingQueue queue;
  auto a = MakeSequence(1, 4, 4);
  auto b = MakeSequence(2, 4, 4);
  a->request.tenant = "rich";
  queue.Join(*a);
  queue.Join(*b);
  EXPECT_TRUE(KeepsBlocksBefore(a.get(), b.get())) << "the older";
  queue.Charge(*a, kFairQuantumTokens - 1);
  EXPECT_TRUE(KeepsBlocksBefore(a.get(), b.get())) << "within the quantum they are equal";
  queue.Charge(*a, 1);
  EXPECT_TRUE(KeepsBlocksBefore(b.get(), a.get())) << "the poorer";
  b->paused = true;
  EXPECT_TRUE(KeepsBlocksBefore(a.get(), b.get())) << "the one that is awake";
}

}  // namespace
}  // namespace pergola
