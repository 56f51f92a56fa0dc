// Groups on a virtual clock: a pipeline of stages, each with a time per plan and per row, around
// ModelGroup. What a plan does is known when it is sent; its answer comes when the last stage would
// have finished it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "coordinator/engine/group_link.h"
#include "coordinator/engine/time.h"
#include "tests/sim/model_group.h"

namespace pergola::sim {

// What happens when, in order of time and, for equal times, of insertion.
class VirtualClock {
 public:
  TimeUs now() const { return now_; }
  void At(TimeUs time, std::function<void()> what) {
    events_.emplace(std::max(time, now_), std::move(what));
  }
  TimeUs next() const { return events_.empty() ? kNever : events_.begin()->first; }
  void MoveTo(TimeUs time) { now_ = std::max(now_, time); }
  // Runs the next event.
  void Step() {
    const auto first = events_.begin();
    MoveTo(first->first);
    const std::function<void()> what = std::move(first->second);
    events_.erase(first);
    what();
  }

 private:
  TimeUs now_ = 0;
  std::multimap<TimeUs, std::function<void()>> events_;
};

// What a plan asks of a stage.
struct PlanWork {
  int64_t rows = 0;
  int64_t kv_tokens = 0;   // positions read, summed over the entries
  int64_t attended = 0;    // pairs of a row and a position
  int64_t logit_rows = 0;  // rows that give a token
};

inline PlanWork WorkOf(const v1::StepPlan& plan) {
  PlanWork work;
  for (const v1::Entry& entry : plan.entries()) {
    const int64_t rows = std::max(1, entry.ids_size());
    work.rows += rows;
    work.kv_tokens += entry.first_position() + rows;
    work.attended += rows * entry.first_position() + rows * (rows + 1) / 2;
    work.logit_rows += entry.logits_at_size();
  }
  return work;
}

// How long things take on a group.
struct GroupTimes {
  std::function<TimeUs(size_t stage, const PlanWork&)> compute;
  // From a stage to the next, from the last one back to the first; it keeps no stage busy.
  std::function<TimeUs(size_t stage, const PlanWork&)> hop = [](size_t, const PlanWork&) {
    return TimeUs{0};
  };
  TimeUs answer_us = 0;  // from the last stage to the coordinator
};

inline GroupTimes PerPlanAndRow(TimeUs plan_us, TimeUs row_us) {
  GroupTimes times;
  times.compute = [=](size_t, const PlanWork& work) { return plan_us + work.rows * row_us; };
  return times;
}

class SimLink final : public GroupLink {
 public:
  using Answer = std::function<void(v1::StepResult)>;

  SimLink(v1::Hello hello, GroupTimes times, VirtualClock* clock, Answer answer)
      : hello_(std::move(hello)),
        times_(std::move(times)),
        clock_(clock),
        answer_(std::move(answer)),
        free_at_(hello_.layout().pipeline_parallel(), 0),
        busy_(hello_.layout().pipeline_parallel()) {}

  void Welcome(uint64_t epoch) override { model_ = std::make_unique<ModelGroup>(hello_, epoch); }

  void Send(std::shared_ptr<const v1::StepPlan> plan) override {
    if (closed_) error_ = "a plan after Close";
    ++in_flight_;
    max_in_flight_ = std::max(max_in_flight_, in_flight_);
    v1::StepResult result = model_->Execute(*plan);
    const PlanWork work = WorkOf(*plan);
    TimeUs ready = clock_->now();
    for (const v1::Entry& entry : plan->entries()) {
      // The first stage waits for a token that the last one has not sampled yet.
      if (entry.has_from()) ready = std::max(ready, finished_[entry.from().plan_id()]);
    }
    for (size_t stage = 0; stage < free_at_.size(); ++stage) {
      const TimeUs compute = times_.compute(stage, work);
      result.add_stages()->set_compute_us(static_cast<uint32_t>(compute));
      const TimeUs start = std::max(ready, free_at_[stage]);
      ready = start + compute;
      if (plan->entries_size() > 0) busy_[stage].emplace_back(start, ready);
      free_at_[stage] = ready;
      if (stage + 1 < free_at_.size()) ready += times_.hop(stage, work);
    }
    finished_[plan->plan_id()] = ready + times_.hop(free_at_.size() - 1, work);
    ready += times_.answer_us;
    if (on_send && !stalled_) on_send(*plan, ready);
    if (stalled_) return;
    clock_->At(ready, [this, result] {
      --in_flight_;
      answer_(result);
    });
  }

  void Close(const absl::Status& status) override {
    closed_ = true;
    close_status_ = status;
    if (on_close) on_close();
  }

  // From now on plans are taken and never answered.
  void Stall() { stalled_ = true; }

  std::string error() const {
    return !error_.empty() || model_ == nullptr ? error_ : model_->error();
  }
  bool closed() const { return closed_; }
  const absl::Status& close_status() const { return close_status_; }
  uint32_t max_in_flight() const { return max_in_flight_; }
  uint64_t executed() const { return model_ == nullptr ? 0 : model_->executed(); }
  // The spans in which a stage computed something.
  const std::vector<std::vector<std::pair<TimeUs, TimeUs>>>& busy() const { return busy_; }

  // Told of each plan and when its answer is due, before that is on its way; may Stall().
  std::function<void(const v1::StepPlan&, TimeUs ready)> on_send;
  std::function<void()> on_close;

 private:
  const v1::Hello hello_;
  const GroupTimes times_;
  VirtualClock* const clock_;
  const Answer answer_;
  std::unique_ptr<ModelGroup> model_;
  std::vector<TimeUs> free_at_;
  std::vector<std::vector<std::pair<TimeUs, TimeUs>>> busy_;
  std::map<uint64_t, TimeUs> finished_;
  uint32_t in_flight_ = 0;
  uint32_t max_in_flight_ = 0;
  bool closed_ = false;
  bool stalled_ = false;
  absl::Status close_status_;
  std::string error_;
};

}  // namespace pergola::sim
