#include "worker/comm/watchdog.h"

#include <atomic>
#include <chrono>
#include <future>
#include <string>

#include "gtest/gtest.h"

namespace pergola {
namespace {

constexpr WatchdogOptions kQuick = {/*limit_ms=*/1000, /*poll_ms=*/1};

struct Report {
  std::string operation;
  uint64_t sequence = 0;
  int peer = 0;
  int64_t waited_ms = 0;
};

class WatchdogTest : public ::testing::Test {
 protected:
  std::unique_ptr<Watchdog> Watch() {
    return std::make_unique<Watchdog>(board_, kQuick, [this](const Wait& wait, int64_t waited_ms) {
      report_.set_value({wait.operation, wait.sequence, wait.peer, waited_ms});
    });
  }
  bool Quiet() {
    return reported_.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout;
  }

  std::atomic<int64_t> now_us_{0};
  WaitBoard board_{[this] { return now_us_.load(); }};
  std::promise<Report> report_;
  std::future<Report> reported_ = report_.get_future();
};

TEST_F(WatchdogTest, ReportsAWaitThatReachesTheLimit) {
  auto watchdog = Watch();
  ScopedWait wait(board_, "receive", 17, 3);
  now_us_ = 1'000'000;
  const Report report = reported_.get();
  EXPECT_EQ(report.operation, "receive");
  EXPECT_EQ(report.sequence, 17U);
  EXPECT_EQ(report.peer, 3);
  EXPECT_EQ(report.waited_ms, 1000);
}

TEST_F(WatchdogTest, IsQuietBelowTheLimit) {
  auto watchdog = Watch();
  ScopedWait wait(board_, "receive", 1, 3);
  now_us_ = 999'000;
  EXPECT_TRUE(Quiet());
}

TEST_F(WatchdogTest, IsQuietWhileNothingIsWaitedFor) {
  auto watchdog = Watch();
  { ScopedWait wait(board_, "receive", 1, 3); }
  now_us_ = 3'600'000'000;
  EXPECT_TRUE(Quiet());
}

TEST_F(WatchdogTest, ManyShortWaitsAreNotOneLong) {
  auto watchdog = Watch();
  for (int i = 0; i < 10; ++i) {
    ScopedWait wait(board_, "all-reduce", i, -1);
    now_us_ += 900'000;
  }
  EXPECT_TRUE(Quiet());
}

TEST_F(WatchdogTest, AStepCountsOnThroughTheWaitsWithinIt) {
  ScopedWait step(board_, "execute plan", 5, -1);
  for (int i = 0; i < 3; ++i) {
    now_us_ += 400'000;
    ScopedWait wait(board_, "all-reduce", i, -1);
  }
  auto watchdog = Watch();
  const Report report = reported_.get();
  EXPECT_EQ(report.operation, "execute plan");
  EXPECT_EQ(report.waited_ms, 1200);
}

TEST(DescribeWaitTest, NamesOperationPeerAndTime) {
  EXPECT_EQ(DescribeWait({"receive", 4, 2, 0}, 1500), "receive 4, waiting for rank 2, for 1500 ms");
  EXPECT_EQ(DescribeWait({"execute plan", 9, -1, 0}, 7), "execute plan 9, for 7 ms");
}

}  // namespace
}  // namespace pergola
