#include "coordinator/engine/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>
#include <vector>

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

SequenceEnd MakeEnd(const std::string& id) {
  SequenceEnd end;
  end.request_id = id;
  end.tenant = "team a";
  end.prompt_tokens = 5;
  end.new_tokens = 20;
  end.submitted = 1000;
  end.first_planned = 1100;
  end.first_token = 13'300;
  end.ended = 46'600;
  end.finish = v1::FINISH_REASON_EOS;
  return end;
}

TEST(RequestLogTest, AnEndIsOneLineOfKeysAndValues) {
  EXPECT_EQ(EndLine(MakeEnd("abc")),
            "request id=\"abc\" index=0 tenant=\"team a\" prompt_tokens=5 new_tokens=20 "
            "queue_ms=0.1 ttft_ms=12.3 total_ms=45.6 status=OK finish=EOS");
}

TEST(RequestLogTest, AnErrorHasItsTextAndNoTimesThatNeverCame) {
  SequenceEnd end = MakeEnd("abc");
  end.first_planned = end.first_token = kNever;
  end.status = absl::DeadlineExceededError("too \"late\"");
  end.finish = v1::FINISH_REASON_UNSPECIFIED;
  EXPECT_EQ(EndLine(end),
            "request id=\"abc\" index=0 tenant=\"team a\" prompt_tokens=5 new_tokens=20 "
            "total_ms=45.6 status=DEADLINE_EXCEEDED error=\"too \\\"late\\\"\"");
}

TEST(RequestLogTest, AClientsWordsCannotForgeALine) {
  const std::string line = EndLine(MakeEnd("x\" status=OK\n2026 I request id=\"y\\\x1b[0m\xff"));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_THAT(line, StartsWith("request id=\"x\\\" status=OK\\x0a2026 I request "
                               "id=\\\"y\\\\\\x1b[0m\\xff\" index=0 "));
}

TEST(RequestLogTest, AnEndlessErrorIsCut) {
  SequenceEnd end = MakeEnd("abc");
  end.status = absl::InternalError(std::string(100'000, 'x'));
  EXPECT_LT(EndLine(end).size(), 1000U);
}

TEST(RefusalTallyTest, TheFirstIsToldAtOnceAndAFloodOncePerSecond) {
  RefusalTally tally;
  EXPECT_EQ(tally.next(), kNever);
  EXPECT_EQ(tally.Take(0), std::nullopt) << "nothing to tell";
  const absl::Status why = absl::ResourceExhaustedError("the queue is full");
  tally.Add("QUEUE_FULL", "a", why);
  EXPECT_EQ(tally.Take(5'000'000),
            "refused count=1 QUEUE_FULL=1 last_id=\"a\" last_error=\"the queue is full\"");
  for (int i = 0; i < 1000; ++i) tally.Add("QUEUE_FULL", "b", why);
  tally.Add("DRAINING", "c\n", absl::UnavailableError("drains"));
  EXPECT_EQ(tally.next(), 6'000'000);
  EXPECT_EQ(tally.Take(5'999'999), std::nullopt);
  EXPECT_EQ(tally.Take(6'000'000),
            "refused count=1001 DRAINING=1 QUEUE_FULL=1000 last_id=\"c\\x0a\" "
            "last_error=\"drains\"");
  EXPECT_EQ(tally.next(), kNever);
}

TEST(RequestLogTest, WritesInOrderAndTellsAllAtItsEnd) {
  std::vector<std::string> lines;
  {
    RequestLog log([&](const std::string& line) { lines.push_back(line); });
    log.Ended(MakeEnd("a"));
    log.Ended(MakeEnd("b"));
    log.Refused("QUEUE_FULL", "c", absl::ResourceExhaustedError("full"));
    log.Refused("QUEUE_FULL", "d", absl::ResourceExhaustedError("full"));
  }
  ASSERT_GE(lines.size(), 3U);
  std::vector<std::string> ends;
  int refused = 0;
  for (const std::string& line : lines) {
    if (line.rfind("request ", 0) == 0) ends.push_back(line.substr(0, 14));
    if (line.rfind("refused count=", 0) == 0) refused += line[14] - '0';
  }
  EXPECT_THAT(ends, ElementsAre("request id=\"a\"", "request id=\"b\""));
  EXPECT_EQ(refused, 2);
}

TEST(RequestLogTest, RefusalsAreToldWithoutAnythingElseHappening) {
  std::promise<std::string> told;
  std::atomic<bool> first{true};
  RequestLog log([&](const std::string& line) {
    if (first.exchange(false)) told.set_value(line);
  });
  log.Refused("DEADLINE", "a", absl::DeadlineExceededError("no time"));
  EXPECT_THAT(told.get_future().get(), HasSubstr("DEADLINE=1"));
}

TEST(RequestLogTest, ABlockedWriterBlocksNobodyAndTheDroppedAreCounted) {
  std::promise<void> blocked;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::vector<std::string> lines;
  std::atomic<bool> first{true};
  {
    RequestLog log([&](const std::string& line) {
      lines.push_back(line);
      if (!first.exchange(false)) return;
      blocked.set_value();
      released.wait();
    });
    log.Ended(MakeEnd("first"));
    blocked.get_future().wait();
    for (size_t i = 0; i < RequestLog::kMaxLines + 7; ++i) log.Ended(MakeEnd("x"));
    release.set_value();
  }
  ASSERT_EQ(lines.size(), 1 + RequestLog::kMaxLines + 1);
  EXPECT_EQ(lines.back(), "the log was too slow: request lines dropped=7");
}

}  // namespace
}  // namespace pergola
