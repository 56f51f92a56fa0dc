// EngineCore's choice of which waiting sequence runs where, and the plans that follow.
#include <algorithm>

#include "base/check.h"
#include "base/status.h"
#include "coordinator/engine/engine_core.h"

namespace pergola {

// One group's view of the waiting queue while a plan is made.
class EngineCore::GroupAdmission final : public Admission {
 public:
  GroupAdmission(EngineCore& core, Group& group, TimeUs now)
      : core_(core), group_(group), now_(now) {}
  Sequence* Next() override { return core_.NextFor(group_, now_); }
  void Admitted(Sequence& sequence) override {
    core_.Dequeue(sequence);
    core_.Placed(sequence, group_, now_);
  }
  void Preempted(Sequence& sequence) override { core_.Enqueue(sequence); }

 private:
  EngineCore& core_;
  Group& group_;
  const TimeUs now_;
};

absl::Status EngineCore::Fits(const Sequence& sequence, const Group& group) const {
  const v1::Hello& hello = group.hello;
  if (sequence.max_known > hello.context_length()) {
    return absl::FailedPreconditionError(
        absl::StrCat("prompt and new tokens are ", sequence.max_known,
                     " positions, the context length is ", hello.context_length()));
  }
  const uint64_t kv_tokens = static_cast<uint64_t>(hello.block_count()) * hello.block_tokens();
  if (sequence.max_known > kv_tokens) {
    return absl::FailedPreconditionError(
        absl::StrCat("prompt and new tokens are ", sequence.max_known,
                     " positions, the group's KV blocks hold ", kv_tokens));
  }
  if (static_cast<uint32_t>(sequence.max_id) >= hello.vocabulary_size()) {
    return absl::FailedPreconditionError(absl::StrCat("token id ", sequence.max_id,
                                                      ", the group's vocabulary ends at ",
                                                      hello.vocabulary_size()));
  }
  return absl::OkStatus();
}

// I4: a stream continues where its numerics are; elsewhere only after the wait, and then as
// SEMANTIC.
bool EngineCore::NumericsAllow(const Sequence& sequence, const Group& group, TimeUs now) {
  const std::string& wanted = sequence.numerics_id;
  if (wanted.empty() || wanted == group.hello.numerics_id()) return true;
  for (const auto& [name, other] : groups_) {
    if (other->ready() && other->hello.numerics_id() == wanted && Fits(sequence, *other).ok()) {
      return false;
    }
  }
  if (sequence.home_since == kNever) return true;
  const TimeUs until = sequence.home_since + options_.failover_wait_us;
  if (until <= now) return true;
  next_failover_ = std::min(next_failover_, until);
  return false;
}

Sequence* EngineCore::NextFor(Group& group, TimeUs now) {
  const std::vector<Sequence*>& running = group.scheduler->running();
  // A suspect runs alone until it has gained a token.
  if (!running.empty() && running.front()->suspect) return nullptr;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Sequence& sequence = *it->second;
    ++it;
    if (!NumericsAllow(sequence, group, now)) continue;
    const absl::Status fits = Fits(sequence, group);
    if (!fits.ok()) {
      const bool elsewhere = std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
        return entry.second->ready() && Fits(sequence, *entry.second).ok();
      });
      if (!elsewhere) EndWithError(sequence, fits, now);
      continue;
    }
    if (sequence.suspect && !running.empty()) return nullptr;
    return &sequence;
  }
  return nullptr;
}

void EngineCore::Placed(Sequence& sequence, Group& group, TimeUs now) {
  const v1::Hello& hello = group.hello;
  if (sequence.continued) {
    const bool exact = hello.bitwise() && sequence.numerics_id == hello.numerics_id();
    const v1::Continuity continuity = exact ? v1::CONTINUITY_EXACT : v1::CONTINUITY_SEMANTIC;
    sequence.continuity = std::max(sequence.continuity, continuity);
    sequence.continued = false;
  }
  sequence.numerics_id = hello.numerics_id();
  sequence.home_since = kNever;
  if (sequence.first_planned == kNever) sequence.first_planned = now;
  if (sequence.info_sent) return;
  sequence.info_sent = true;
  Mailbox::Delivery delivery;
  delivery.info = InfoOf(sequence, group.epoch);
  delivery.text = std::move(sequence.resumed_text);
  sequence.resumed_text.clear();
  sequence.request.mailbox->Put(std::move(delivery));
}

void EngineCore::Pump(TimeUs now) {
  // Looked at again below wherever a sequence still waits for its numerics.
  if (next_failover_ <= now) next_failover_ = kNever;
  std::vector<Group*> ready;
  for (const auto& [name, group] : groups_) {
    if (group->can_send() && group->answered) ready.push_back(group.get());
  }
  // The emptiest group chooses first, again after every plan, so that new sequences spread.
  bool planned = true;
  while (planned) {
    planned = false;
    std::stable_sort(ready.begin(), ready.end(), [](const Group* a, const Group* b) {
      return a->scheduler->free_slots() > b->scheduler->free_slots();
    });
    for (Group* group : ready) {
      GroupAdmission admission(*this, *group, now);
      std::shared_ptr<v1::StepPlan> plan = group->scheduler->Plan(admission);
      if (plan == nullptr) continue;
      SendPlan(*group, std::move(plan), now);
      planned = true;
      break;
    }
  }
  for (const auto& [name, group] : groups_) {
    if (!group->can_send() || !group->sent.empty()) continue;
    const bool first = group->last_sent == kNever;
    if (first || group->last_sent + options_.probe_interval_us <= now) {
      SendPlan(*group, group->scheduler->Probe(), now);
    }
  }
}

}  // namespace pergola
