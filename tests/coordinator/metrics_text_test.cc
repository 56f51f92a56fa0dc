#include "coordinator/metrics/metrics_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/measurements.h"
#include "coordinator/engine/overload.h"
#include "coordinator/metrics/status_snapshots.h"
#include "tests/coordinator/exposition.h"

namespace pergola {
namespace {

using testing::HasSubstr;

// A status with every field set to a number of its own.
v1::StatusResponse FullStatus() {
  v1::StatusResponse status;
  status.set_model("m\"1\\\n");
  status.set_serving(true);
  status.set_queued(1);
  status.set_running(2);
  status.set_paused(3);
  status.set_requests_total(4);
  status.set_tokens_total(5'000'000'000);
  status.set_overrun_tokens(6);
  status.set_preemptions(7);
  status.set_replays(8);
  status.set_plans_total(9);
  status.set_mean_batch(31.0 / 9);
  status.set_uptime_ms(10'500);
  status.set_prefix_hit_tokens(11);
  status.set_prefix_missed_tokens(12);
  status.set_forks(13);
  status.set_pauses(14);
  status.set_slow_readers_ended(15);
  (*status.mutable_refusals())["QUEUE_FULL"] = 16;
  (*status.mutable_refusals())["DRAINING"] = 17;
  Measurements measured;
  measured.bad_logits = 18;
  measured.repeated_passes = 19;
  measured.prompt_tokens = 19;
  measured.CountEnd(absl::StatusCode::kOk, v1::FINISH_REASON_EOS);
  measured.CountEnd(absl::StatusCode::kCancelled, v1::FINISH_REASON_UNSPECIFIED);
  measured.first_token.Observe(12'000);
  measured.first_token.Observe(1'000'000'000);
  measured.token_gap.Observe(3000, 3);
  measured.queue_wait.Observe(10);
  measured.CopyTo(&status);
  for (const char* name : {"a", "b"}) {
    v1::GroupStatus& group = *status.add_groups();
    group.set_name(name);
    group.set_state(name[0] == 'a' ? v1::GROUP_STATE_READY : v1::GROUP_STATE_LOST);
    group.set_blocks_total(100);
    group.set_blocks_used(20);
    group.set_blocks_cached(21);
    group.set_slots_total(64);
    group.set_slots_used(22);
    TimeHistogram steps;
    steps.Observe(700);
    steps.CopyTo(group.mutable_step_time());
  }
  return status;
}

TEST(MetricsTextTest, SaysWhatTheStatusSays) {
  const std::string text = MetricsText(FullStatus());
  const Exposition page = ReadExposition(text);
  ASSERT_EQ(page.error, "") << text;
  const std::map<std::string, double> expected = {
      {"pergola_info{model=\"m\\\"1\\\\\\n\"}", 1},
      {"pergola_uptime_seconds", 10.5},
      {"pergola_serving", 1},
      {"pergola_draining", 0},
      {"pergola_sequences_queued", 1},
      {"pergola_sequences_running", 2},
      {"pergola_sequences_paused", 3},
      {"pergola_sequences_accepted_total", 4},
      {"pergola_generated_tokens_total", 5e9},
      {"pergola_prompt_tokens_total", 19},
      {"pergola_overrun_tokens_total", 6},
      {"pergola_preemptions_total", 7},
      {"pergola_replays_total", 8},
      {"pergola_plans_total", 9},
      {"pergola_plan_entries_total", 31},
      {"pergola_prefix_hit_tokens_total", 11},
      {"pergola_prefix_asked_tokens_total", 23},
      {"pergola_forks_total", 13},
      {"pergola_pauses_total", 14},
      {"pergola_slow_readers_ended_total", 15},
      {"pergola_refusals_total{reason=\"QUEUE_FULL\"}", 16},
      {"pergola_refusals_total{reason=\"DRAINING\"}", 17},
      {"pergola_refusals_total{reason=\"INVALID_REQUEST\"}", 0},
      {"pergola_bad_logits_total", 18},
      {"pergola_repeated_passes_total", 19},
      {"pergola_sequences_ended_total{status=\"OK\",finish=\"EOS\"}", 1},
      {"pergola_sequences_ended_total{status=\"CANCELLED\",finish=\"\"}", 1},
      {"pergola_group_ready{group=\"a\"}", 1},
      {"pergola_group_ready{group=\"b\"}", 0},
      {"pergola_group_blocks{group=\"a\"}", 100},
      {"pergola_group_blocks_used{group=\"a\"}", 20},
      {"pergola_group_blocks_cached{group=\"a\"}", 21},
      {"pergola_group_slots{group=\"a\"}", 64},
      {"pergola_group_slots_used{group=\"b\"}", 22},
      {"pergola_first_token_seconds_count", 2},
      {"pergola_first_token_seconds_sum", 1000.012},
      {"pergola_first_token_seconds_bucket{le=\"0.01\"}", 0},
      {"pergola_first_token_seconds_bucket{le=\"0.025\"}", 1},
      {"pergola_first_token_seconds_bucket{le=\"100\"}", 1},
      {"pergola_first_token_seconds_bucket{le=\"+Inf\"}", 2},
      {"pergola_token_gap_seconds_bucket{le=\"0.001\"}", 3},
      {"pergola_token_gap_seconds_sum", 0.003},
      {"pergola_queue_wait_seconds_count", 1},
      {"pergola_step_seconds_bucket{group=\"b\",le=\"0.001\"}", 1},
  };
  for (const auto& [name, value] : expected) {
    const auto found = page.samples.find(name);
    ASSERT_NE(found, page.samples.end()) << name << " is missing in\n" << text;
    EXPECT_DOUBLE_EQ(found->second, value) << name;
  }
  for (const char* family :
       {"pergola_first_token_seconds", "pergola_token_gap_seconds", "pergola_queue_wait_seconds"}) {
    EXPECT_EQ(CheckHistogram(page, family, ""), "") << family;
  }
  EXPECT_EQ(CheckHistogram(page, "pergola_step_seconds", "group=\"a\""), "");
}

TEST(MetricsTextTest, AnEmptyStatusIsAValidPage) {
  const Exposition page = ReadExposition(MetricsText({}));
  EXPECT_EQ(page.error, "");
  EXPECT_EQ(page.samples.at("pergola_serving"), 0);
  EXPECT_EQ(page.types.count("pergola_sequences_ended_total"), 0U) << "nothing has ended";
  for (int i = 0; i < kRefusals; ++i) {
    const std::string reason = RefusalName(static_cast<Refusal>(i));
    EXPECT_EQ(page.samples.at("pergola_refusals_total{reason=\"" + reason + "\"}"), 0);
  }
  EXPECT_EQ(page.types.count("pergola_step_seconds"), 0U) << "no group";
}

TEST(MetricsTextTest, ANameThatIsNoUtf8DoesNotSpoilThePage) {
  v1::StatusResponse status;
  status.set_model("a\xff\xc3\xa9");
  EXPECT_THAT(MetricsText(status), HasSubstr("pergola_info{model=\"a\xef\xbf\xbd\xc3\xa9\"} 1\n"));
}

TEST(MetricsTextTest, AHistogramOfAnotherShapeIsStillOne) {
  v1::StatusResponse status;
  status.mutable_first_token()->add_counts(2);
  status.mutable_token_gap()->add_bounds(1);
  const Exposition page = ReadExposition(MetricsText(status));
  EXPECT_EQ(page.error, "");
  EXPECT_EQ(page.samples.at("pergola_first_token_seconds_count"), 2);
  EXPECT_EQ(page.samples.at("pergola_token_gap_seconds_bucket{le=\"+Inf\"}"), 0);
}

TEST(MetricsTextTest, EveryMetricIsDocumentedAndNothingElse) {
  const Exposition page = ReadExposition(MetricsText(FullStatus()));
  std::ifstream file(std::string(PERGOLA_TEST_DATA) + "/../docs/metrics.md");
  const std::string manual{std::istreambuf_iterator<char>(file), {}};
  std::set<std::string> documented;
  const std::regex row("\\| `(pergola_[a-z_]+)(\\{[a-z,]+\\})?` \\| (counter|gauge|histogram) \\|");
  for (auto it = std::sregex_iterator(manual.begin(), manual.end(), row);
       it != std::sregex_iterator(); ++it) {
    documented.insert((*it)[1].str() + " " + (*it)[3].str());
  }
  std::set<std::string> printed;
  for (const auto& [name, type] : page.types) printed.insert(name + " " + type);
  EXPECT_EQ(documented, printed);
}

TEST(ExpositionTest, TheReaderNoticesWhatIsWrong) {
  const std::string help = "# HELP a_total x\n";
  const std::string type = "# TYPE a_total counter\n";
  EXPECT_EQ(ReadExposition(help + type + "a_total 1\n").error, "");
  for (const std::string& text :
       {std::string(), help + type + "a_total 1", type + "a_total 1\n", help + type + "b_total 1\n",
        help + type + "a_total x\n", help + type + "a_total -1\n", help + type + "a_total{b} 1\n",
        help + type + "a_total 1\na_total 1\n", help + type + "a_total{b=\"\"\"} 1\n",
        help + type + help + type + "a_total 1\n", std::string("# TYPE a gauge\n"),
        std::string("# HELP a x\n# TYPE a counter\na 1\n")}) {
    EXPECT_NE(ReadExposition(text).error, "") << text;
  }
  const std::string histogram = "# HELP h x\n# TYPE h histogram\nh_sum 1\n";
  const auto check = [&](const std::string& rest) {
    return CheckHistogram(ReadExposition(histogram + rest), "h", "");
  };
  EXPECT_EQ(check("h_count 2\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n"), "");
  EXPECT_NE(check("h_count 3\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n"), "");
  EXPECT_NE(check("h_count 2\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\n"), "");
  EXPECT_NE(check("h_count 2\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"2\"} 2\n"), "");
}

class StatusSnapshotsTest : public ::testing::Test {
 protected:
  StatusSnapshotsTest()
      : snapshots_(std::make_shared<StatusSnapshots>(
            [this](StatusSnapshots::Done done) { asked_.push_back(std::move(done)); },
            [this] { return now_; })) {}

  void Get() {
    snapshots_->Get([this](const StatusSnapshots::Snapshot& snapshot) {
      got_.push_back(snapshot == nullptr ? -1 : static_cast<int>(snapshot->queued()));
    });
  }
  void Answer(uint32_t queued) {
    v1::StatusResponse status;
    status.set_queued(queued);
    asked_.back()(status);
  }

  TimeUs now_ = 1000;
  std::vector<StatusSnapshots::Done> asked_;
  std::vector<int> got_;
  std::shared_ptr<StatusSnapshots> snapshots_;
};

TEST_F(StatusSnapshotsTest, AsksOnceForAllThatWait) {
  for (int i = 0; i < 3; ++i) Get();
  EXPECT_EQ(asked_.size(), 1U);
  EXPECT_TRUE(got_.empty());
  Answer(7);
  EXPECT_THAT(got_, testing::ElementsAre(7, 7, 7));
}

TEST_F(StatusSnapshotsTest, GivesTheSameForAWhileAndAsksAgainThen) {
  Get();
  Answer(7);
  now_ += StatusSnapshots::kSnapshotAgeUs - 1;
  Get();
  EXPECT_THAT(got_, testing::ElementsAre(7, 7));
  EXPECT_EQ(asked_.size(), 1U);
  now_ += 1;
  Get();
  EXPECT_EQ(asked_.size(), 2U);
  Answer(8);
  EXPECT_THAT(got_, testing::ElementsAre(7, 7, 8));
}

TEST_F(StatusSnapshotsTest, AnEngineThatDoesNotAnswerGathersNoCrowd) {
  for (size_t i = 0; i < StatusSnapshots::kMaxWaiting; ++i) Get();
  EXPECT_TRUE(got_.empty());
  Get();
  EXPECT_THAT(got_, testing::ElementsAre(-1));
  EXPECT_EQ(asked_.size(), 1U);
  Answer(7);
  EXPECT_EQ(got_.size(), 1 + StatusSnapshots::kMaxWaiting);
}

}  // namespace
}  // namespace pergola
