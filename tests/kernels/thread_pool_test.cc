#include "kernels/thread_pool.h"

#include <chrono>
#include <numeric>

#include "gtest/gtest.h"

namespace pergola {
namespace {

TEST(ThreadPoolTest, RunsEveryThreadOncePerJob) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads, -1);
    std::vector<int> runs(static_cast<size_t>(threads));
    for (int job = 0; job < 1000; ++job) {
      pool.Run([&](int thread) { ++runs[static_cast<size_t>(thread)]; });
    }
    for (int count : runs) EXPECT_EQ(count, 1000);
  }
}

TEST(ThreadPoolTest, WakesThreadsThatFellAsleep) {
  ThreadPool pool(3, -1);
  std::vector<int> runs(3);
  for (int job = 0; job < 5; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.Run([&](int thread) { ++runs[static_cast<size_t>(thread)]; });
  }
  EXPECT_EQ(runs, std::vector<int>({5, 5, 5}));
}

TEST(ThreadPoolTest, TheCallerWaitsForTheSlowestThread) {
  ThreadPool pool(2, -1);
  bool done = false;
  pool.Run([&](int thread) {
    if (thread == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    done = true;
  });
  EXPECT_TRUE(done);
}

TEST(ThreadPoolTest, RangesCoverTheCountOnce) {
  ThreadPool pool(3, -1);
  for (int64_t count : {0, 1, 2, 3, 10, 1000}) {
    for (int64_t grain : {1, 4, 2000}) {
      std::vector<int> seen(static_cast<size_t>(count));
      pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
        ASSERT_LT(begin, end);
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), int64_t{0}), count);
      for (int times : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST(ThreadPoolTest, ScratchIsAlignedAndApart) {
  ThreadPool pool(2, -1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pool.Scratch(0)) % 64, 0U);
  EXPECT_EQ(pool.Scratch(1) - pool.Scratch(0), ThreadPool::kScratchBytes);
}

TEST(ThreadPoolTest, AnAbsentCpuToPinToIsNoError) {
  ThreadPool pool(2, 100000);
  int sum[2] = {};
  pool.Run([&](int thread) { sum[thread] = 1; });
  EXPECT_EQ(sum[0] + sum[1], 2);
}

}  // namespace
}  // namespace pergola
