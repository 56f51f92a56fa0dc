// What the engine's tests share: requests, a waiting queue for Scheduler, and a link that records.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/group_link.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/scheduler.h"
#include "tests/sim/fake_text.h"
#include "tests/sim/model_group.h"

namespace pergola {

inline SequenceRequest MakeRequest(uint32_t prompt, uint32_t max_new) {
  SequenceRequest request;
  request.request_id = "r";
  for (uint32_t i = 0; i < prompt; ++i) request.prompt_ids.push_back(static_cast<int32_t>(i % 60));
  request.max_new_tokens = max_new;
  request.text = std::make_unique<sim::FakeText>();
  request.mailbox = std::make_shared<Mailbox>([] {});
  return request;
}

inline std::unique_ptr<Sequence> MakeSequence(SequenceId id, uint32_t prompt, uint32_t max_new) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->request = MakeRequest(prompt, max_new);
  sequence->known = sequence->request.prompt_ids;
  sequence->prompt_count = prompt;
  sequence->max_known = prompt + max_new;
  return sequence;
}

// First come, first served; the preempted go to the front.
class TestQueue final : public Admission {
 public:
  Sequence* Next() override { return waiting.empty() ? nullptr : waiting.front(); }
  void Admitted(Sequence& sequence) override { waiting.pop_front(); }
  void Preempted(Sequence& sequence) override {
    waiting.push_front(&sequence);
    preempted.push_back(sequence.id);
  }

  std::deque<Sequence*> waiting;
  std::vector<SequenceId> preempted;
};

// A link that keeps what it is told.
class RecordingLink final : public GroupLink {
 public:
  void Welcome(uint64_t e) override { epoch = e; }
  void Send(std::shared_ptr<const v1::StepPlan> plan) override { plans.push_back(std::move(plan)); }
  void Close(const absl::Status& status) override {
    ++closes;
    close_status = status;
  }

  uint64_t epoch = 0;
  std::vector<std::shared_ptr<const v1::StepPlan>> plans;
  int closes = 0;
  absl::Status close_status;
};

// The answer to a plan: `id` for every entry that samples.
inline v1::StepResult Answer(const v1::StepPlan& plan, int32_t id) {
  v1::StepResult result;
  result.set_plan_id(plan.plan_id());
  result.set_epoch(plan.epoch());
  for (const v1::Entry& entry : plan.entries()) {
    v1::EntryResult& out = *result.add_entries();
    if (entry.logits_at_size() > 0) out.add_ids(id);
  }
  return result;
}

}  // namespace pergola
