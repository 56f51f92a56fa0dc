// EngineCore's choice of which waiting sequence runs where, and the plans that follow.
#include <algorithm>

#include "base/check.h"
#include "base/status.h"
#include "coordinator/engine/engine_core.h"

namespace pergola {
namespace {

// A cached prefix draws a sequence to its group if it saves at least so many positions, ...
constexpr uint32_t kWorthwhileTokens = 64;
// ... if no more than so many sequences run there, by those that run here, ...
constexpr size_t kBusierFactor = 2;
constexpr size_t kBusierSlack = 4;
// ... and if its oldest plan is no older.
constexpr TimeUs kPrefixPatienceUs = 1'000'000;

}  // namespace

// One group's view of the waiting queue while a plan is made.
class EngineCore::GroupAdmission final : public Admission {
 public:
  GroupAdmission(EngineCore& core, Group& group, TimeUs now)
      : core_(core), group_(group), now_(now) {}
  Sequence* Next() override { return core_.NextFor(group_, now_); }
  void Admitted(Sequence& sequence) override {
    core_.waiting_.Remove(sequence);
    core_.pace_.Placed(now_);
    core_.waiting_.Served(sequence);
    // What a preemption or a lost group makes to be computed again is not the tenant's account.
    if (sequence.first_planned == kNever) {
      core_.waiting_.Charge(sequence, sequence.known.size() - sequence.planned);
    }
    core_.Placed(sequence, group_, now_);
  }
  void Preempted(Sequence& sequence) override { core_.waiting_.Add(sequence); }

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
  unfit_.clear();
  Sequence* next =
      waiting_.First([&](Sequence& sequence) { return Consider(sequence, group, now); });
  for (auto& [sequence, why] : unfit_) EndWithError(*sequence, std::move(why), now);
  return next;
}

WaitingQueue::Verdict EngineCore::Consider(Sequence& sequence, Group& group, TimeUs now) {
  using Verdict = WaitingQueue::Verdict;
  if (sequence.paused || !NumericsAllow(sequence, group, now)) return Verdict::kSkip;
  absl::Status fits = Fits(sequence, group);
  if (!fits.ok()) {
    const bool elsewhere = std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
      return entry.second->ready() && Fits(sequence, *entry.second).ok();
    });
    if (!elsewhere) unfit_.emplace_back(&sequence, std::move(fits));
    return Verdict::kSkip;
  }
  if (WaitsForLeader(sequence) || IsBetterElsewhere(sequence, group, now)) return Verdict::kSkip;
  if (sequence.suspect && !group.scheduler->running().empty()) return Verdict::kStop;
  return Verdict::kTake;
}

// While a sibling computes the prompt that both have, or is about to.
bool EngineCore::WaitsForLeader(Sequence& sequence) const {
  ForkGroup* fork = sequence.request.fork_group.get();
  if (fork == nullptr) return false;
  if (fork->leader == nullptr) fork->leader = &sequence;
  if (sequence.scores()) return false;  // it needs the logits of every position
  const Sequence& leader = *fork->leader;
  if (&leader == &sequence || leader.suspect) return false;
  if (!leader.running()) return leader.first_planned == kNever;
  // The plan that completes the prompt must have been sent, not only begun.
  return leader.planned < leader.prompt_count ||
         leader.prompt_plan == leader.scheduler->next_plan();
}

// Longest cached prefix first, unless that group is clearly busier or does not answer.
bool EngineCore::IsBetterElsewhere(Sequence& sequence, const Group& group, TimeUs now) {
  if (groups_.size() < 2 || sequence.known.size() <= kWorthwhileTokens) return false;
  const uint32_t here = group.scheduler->CachedTokens(sequence);
  const size_t running = group.scheduler->running().size();
  for (const auto& [name, other] : groups_) {
    if (other.get() == &group || !other->can_send() || !other->answered) continue;
    if (!other->sent.empty() && other->head_since + kPrefixPatienceUs <= now) continue;
    if (other->scheduler->running().size() > kBusierFactor * running + kBusierSlack) continue;
    if (!Fits(sequence, *other).ok() || !NumericsAllow(sequence, *other, now)) continue;
    const std::vector<Sequence*>& others = other->scheduler->running();
    if (!others.empty() && (sequence.suspect || others.front()->suspect)) continue;
    if (other->scheduler->CachedTokens(sequence) < here + kWorthwhileTokens) continue;
    if (other->scheduler->HasRoomFor(sequence)) return true;
  }
  return false;
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
  if (sequence.first_planned == kNever) {
    sequence.first_planned = now;
    measured_.queue_wait.Observe(now - sequence.submitted);
    measured_.prompt_tokens += sequence.prompt_count;
  }
  if (sequence.info_sent) return;
  sequence.info_sent = true;
  Mailbox::Delivery delivery;
  delivery.info = InfoOf(sequence, group.epoch);
  delivery.text = std::move(sequence.resumed_text);
  sequence.resumed_text.clear();
  Deliver(sequence, std::move(delivery), now);
}

void EngineCore::Pump(TimeUs now) {
  // Looked at again below wherever a sequence still waits for its numerics.
  if (next_failover_ <= now) next_failover_ = kNever;
  std::vector<Group*> ready;
  for (const auto& [name, group] : groups_) {
    if (group->can_send() && group->answered) ready.push_back(group.get());
  }
  pace_.Observe(!ready.empty() && waiting_.size() > 0, now);
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
  pace_.Observe(!ready.empty() && waiting_.size() > 0, now);
  for (const auto& [name, group] : groups_) {
    if (!group->can_send() || !group->sent.empty()) continue;
    const bool first = group->last_sent == kNever;
    if (first || group->last_sent + options_.probe_interval_us <= now) {
      SendPlan(*group, group->scheduler->Probe(), now);
    }
  }
}

}  // namespace pergola
