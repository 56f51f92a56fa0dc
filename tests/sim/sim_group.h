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

struct StageCost {
  TimeUs plan_us = 100;
  TimeUs row_us = 10;
};

class SimLink final : public GroupLink {
 public:
  using Answer = std::function<void(v1::StepResult)>;

  SimLink(v1::Hello hello, StageCost cost, VirtualClock* clock, Answer answer)
      : hello_(std::move(hello)),
        cost_(cost),
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
    TimeUs ready = clock_->now();
    TimeUs rows = 0;
    for (const v1::Entry& entry : plan->entries()) {
      rows += std::max(1, entry.ids_size());
      // The first stage waits for a token that the last one has not sampled yet.
      if (entry.has_from()) ready = std::max(ready, finished_[entry.from().plan_id()]);
    }
    for (size_t stage = 0; stage < free_at_.size(); ++stage) {
      result.add_stages()->set_compute_us(
          static_cast<uint32_t>(cost_.plan_us + rows * cost_.row_us));
      const TimeUs start = std::max(ready, free_at_[stage]);
      ready = start + cost_.plan_us + rows * cost_.row_us;
      if (plan->entries_size() > 0) busy_[stage].emplace_back(start, ready);
      free_at_[stage] = ready;
    }
    finished_[plan->plan_id()] = ready;
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
  const StageCost cost_;
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
