#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/shared_region.h"
#include "worker/comm/shm_communicator.h"

namespace pergola {
namespace {

// Values of very different sizes, so that any other order of additions shows in the bits.
std::vector<float> Values(int rank, int64_t count) {
  std::mt19937 random(1000 + rank);
  std::vector<float> values(count);
  for (float& value : values) {
    const int exponent = static_cast<int>(random() % 24) - 12;
    value = std::ldexp(static_cast<float>(random() % 20001) - 10000.0F, exponent);
  }
  return values;
}

std::vector<float> SumInRankOrder(int ranks, int64_t count) {
  std::vector<float> sum = Values(0, count);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<float> part = Values(rank, count);
    for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
  }
  return sum;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class CommTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, CommTest, ::testing::Range(1, 9));

TEST_P(CommTest, AllReduceAddsInRankOrderToTheBit) {
  ThreadStage stage(GetParam());
  // Below, at and above the one-barrier limit, the slices' granularity and the chunk of 16384
  // floats.
  for (const int64_t count : {1, 3, 17, 576, 4096, 16384, 16385, 40000, 100003}) {
    const std::vector<float> expected = SumInRankOrder(stage.size(), count);
    std::vector<int> good(stage.size(), 0);
    OnThreads(stage.size(), [&](int rank) {
      std::vector<float> data = Values(rank, count);
      good[rank] = stage.at(rank).AllReduce(data.data(), count).ok() && SameBits(data, expected);
    });
    EXPECT_THAT(good, ::testing::Each(1)) << count;
  }
}

TEST(CommunicatorTest, AllReduceOfAMillionIsTheSameWithAnyChunk) {
  const int64_t count = 1'000'000;
  const std::vector<float> expected = SumInRankOrder(3, count);
  for (const int64_t chunk_bytes : {64 << 10, 512 << 10, 8 << 20}) {
    ThreadStage stage(3, chunk_bytes);
    std::vector<int> good(3, 0);
    OnThreads(3, [&](int rank) {
      std::vector<float> data = Values(rank, count);
      good[rank] = stage.at(rank).AllReduce(data.data(), count).ok() && SameBits(data, expected);
    });
    EXPECT_THAT(good, ::testing::Each(1)) << chunk_bytes;
  }
}

TEST_P(CommTest, AllGatherPutsRanksInOrderAlsoInPlace) {
  ThreadStage stage(GetParam(), 1024);
  const int64_t bytes = 5000;
  std::vector<int> good(stage.size(), 0);
  OnThreads(stage.size(), [&](int rank) {
    const std::vector<uint8_t> mine(bytes, static_cast<uint8_t>(rank + 1));
    std::vector<uint8_t> apart(bytes * stage.size(), 0);
    std::vector<uint8_t> in_place(bytes * stage.size(), 0);
    std::memcpy(in_place.data() + rank * bytes, mine.data(), bytes);
    bool fine = stage.at(rank).AllGather(mine.data(), bytes, apart.data()).ok();
    fine &= stage.at(rank).AllGather(in_place.data() + rank * bytes, bytes, in_place.data()).ok();
    for (int64_t i = 0; i < bytes * stage.size(); ++i) {
      fine &= apart[i] == i / bytes + 1 && in_place[i] == apart[i];
    }
    good[rank] = fine;
  });
  EXPECT_THAT(good, ::testing::Each(1));
}

TEST_P(CommTest, BroadcastReachesAllFromAnyRoot) {
  ThreadStage stage(GetParam(), 1024);
  std::vector<int> good(stage.size(), 1);
  OnThreads(stage.size(), [&](int rank) {
    for (int root = 0; root < stage.size(); ++root) {
      std::vector<uint8_t> data(3000, static_cast<uint8_t>(rank == root ? 7 + root : 0));
      const bool idle = root % 2 == 0;
      good[rank] &= stage.at(rank).Broadcast(data.data(), 3000, root, idle).ok() ? 1 : 0;
      for (const uint8_t byte : data) good[rank] &= byte == 7 + root ? 1 : 0;
    }
  });
  EXPECT_THAT(good, ::testing::Each(1));
}

// Thousands of rounds of changing kinds, without a pause between: a buffer reused too early shows
// as a wrong sum.
TEST_P(CommTest, MixedCollectivesNeverOverrunOneAnother) {
  ThreadStage stage(GetParam(), 4096);
  std::vector<int> wrong(stage.size(), 0);
  OnThreads(stage.size(), [&](int rank) {
    for (int round = 0; round < 1500; ++round) {
      const int64_t count = round % 3 == 0 ? 10 : 30000 / (1 + round % 7);
      std::vector<float> data(count, static_cast<float>(rank + round));
      if (!stage.at(rank).AllReduce(data.data(), count).ok()) ++wrong[rank];
      const int n = stage.size();
      const int rank_sum = n * (n - 1) / 2;  // 0 + 1 + ... + (n - 1)
      const auto expected = static_cast<float>(n * round + rank_sum);
      if (data.front() != expected || data.back() != expected) ++wrong[rank];
      int64_t word = rank == round % n ? round : -1;
      if (!stage.at(rank).Broadcast(&word, sizeof(word), round % n, false).ok()) ++wrong[rank];
      if (word != round) ++wrong[rank];
      if (count > 2000) round += 7;  // large ones are slow under a sanitizer; the mixture matters
    }
  });
  EXPECT_THAT(wrong, ::testing::Each(0));
}

TEST(CommunicatorTest, ProcessesMeetInSharedMemory) {
  constexpr int kRanks = 3;
  const int64_t count = 20000;
  const std::vector<float> expected = SumInRankOrder(kRanks, count);
  ShmOptions options;
  options.size = kRanks;
  options.chunk_bytes = 16 << 10;
  auto region = SharedRegion::MapAnonymous(ShmCommunicator::RegionBytes(options));
  ASSERT_TRUE(region.ok());
  ShmCommunicator::Format(**region);
  std::vector<pid_t> children;
  for (int rank = 0; rank < kRanks; ++rank) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      WaitBoard board;
      options.rank = rank;
      options.board = &board;
      ShmCommunicator communicator(*region, options);
      std::vector<float> data = Values(rank, count);
      bool fine = true;
      for (int repeat = 0; repeat < 50; ++repeat) {
        data = Values(rank, count);
        fine &= communicator.AllReduce(data.data(), count).ok() && SameBits(data, expected);
      }
      _exit(fine ? 0 : 1);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = -1;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
}

TEST(CommunicatorTest, AbandonEndsTheWaitsOfAllRanks) {
  ThreadStage stage(3);
  std::vector<absl::StatusCode> codes(3);
  OnThreads(3, [&](int rank) {
    if (rank == 2) {
      stage.at(rank).Abandon();
      return;
    }
    float value = 1;
    codes[rank] = stage.at(rank).AllReduce(&value, 1).code();
  });
  EXPECT_EQ(codes[0], absl::StatusCode::kUnavailable);
  EXPECT_EQ(codes[1], absl::StatusCode::kUnavailable);
}

// The rank leaves its group then.
TEST(CommunicatorTest, AWatchEndsAnIdleWait) {
  ThreadStage stage(2);
  int asked = 0;
  stage.at(1).WatchIdleWaits(
      [&] { return ++asked < 3 ? absl::OkStatus() : absl::InternalError("the device is gone"); });
  uint8_t byte = 0;
  const absl::Status status = stage.at(1).Broadcast(&byte, 1, 0, /*idle=*/true);
  EXPECT_EQ(status.message(), "the device is gone");
  EXPECT_EQ(asked, 3);
}

TEST(CommunicatorTest, AWatchEndsNoOtherWait) {
  ThreadStage stage(2);
  stage.at(1).WatchIdleWaits([] { return absl::InternalError("nobody asks"); });
  std::thread waiting([&] {
    float value = 1;
    EXPECT_EQ(stage.at(1).AllReduce(&value, 1).code(), absl::StatusCode::kUnavailable);
  });
  Wait wait;
  while (!stage.board(1).Read(&wait)) std::this_thread::yield();
  stage.at(0).Abandon();
  waiting.join();
}

TEST(CommunicatorTest, PublishesWhoIsMissing) {
  ThreadStage stage(2);
  std::thread waiting([&] {
    float value = 1;
    EXPECT_FALSE(stage.at(0).AllReduce(&value, 1).ok());
  });
  Wait wait;
  while (!stage.board(0).Read(&wait)) std::this_thread::yield();
  EXPECT_STREQ(wait.operation, "all-reduce");
  EXPECT_EQ(wait.peer, 1);
  stage.at(1).Abandon();
  waiting.join();
}

TEST(CommunicatorTest, RunsTheBackgroundAlsoInAStageOfOneRank) {
  int calls = 0;
  ShmOptions options;
  WaitBoard board;
  options.board = &board;
  options.background = [&] {
    ++calls;
    return false;
  };
  auto region = SharedRegion::OnHeap(ShmCommunicator::RegionBytes(options));
  ShmCommunicator::Format(*region);
  ShmCommunicator communicator(region, options);
  float value = 3;
  ASSERT_TRUE(communicator.AllReduce(&value, 1).ok());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(value, 3);
}

TEST(SharedRegionTest, IsGoneFromTheSystemOnceUnlinked) {
  const std::string name = "/pergola-test-" + std::to_string(getpid());
  auto made = SharedRegion::Create(name, 8192);
  ASSERT_TRUE(made.ok()) << made.status();
  auto opened = SharedRegion::Open(name, 8192);
  ASSERT_TRUE(opened.ok());
  SharedRegion::Unlink(name);
  (*made)->data()[5] = 42;
  EXPECT_EQ((*opened)->data()[5], 42);
  EXPECT_FALSE(SharedRegion::Open(name, 8192).ok());
}

TEST(SharedRegionTest, RefusesASizeTheSystemDoesNotHave) {
  const auto region = SharedRegion::Create("/pergola-test-large", int64_t{1} << 50);
  ASSERT_EQ(region.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(region.status().message()), ::testing::HasSubstr("1125899906842624"));
  EXPECT_FALSE(SharedRegion::Open("/pergola-test-large", 8192).ok());
}

TEST(SharedRegionTest, RefusesAnObjectOfAnotherSize) {
  const std::string name = "/pergola-test-size-" + std::to_string(getpid());
  auto made = SharedRegion::Create(name, 8192);
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(SharedRegion::Open(name, 4096).status().code(), absl::StatusCode::kInternal);
  SharedRegion::Unlink(name);
}

}  // namespace
}  // namespace pergola
