// EngineCore's groups: attaching, results, losing.
#include <algorithm>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/engine/engine_core.h"

namespace pergola {
namespace {

// Names of groups that are remembered, lost ones included. The join token keeps strangers out; this
// keeps a misconfigured launcher from growing the table.
constexpr size_t kMaxGroups = 64;
// Beyond this a peer's last_epoch is no time in microseconds (the year 146,000) but an attack on
// the counter.
constexpr uint64_t kMaxEpoch = 1ULL << 62;
// Stages of a pipeline; the depth follows from it.
constexpr uint32_t kMaxStages = kMaxLayers;
// Of one group: what the coordinator can hold of its blocks (about 80 bytes each, 320 MiB) and
// slots. 4 Mi blocks are 64 Mi positions at the least.
constexpr uint32_t kMaxBlocks = 1U << 22;
constexpr uint32_t kMaxSlots = 1U << 16;
constexpr uint32_t kMaxStepTokens = 1U << 20;
// A fault's text and the coordinates before it.
constexpr size_t kMaxFaultBytes = kMaxFaultTextBytes + 512;

struct NamedLimit {
  const char* name;
  uint32_t value;
  uint32_t limit;
};

// How much is lost if the record of this group, which is not attached, makes room for another name.
int Worth(const Group& group) {
  if (group.epoch != 0) return 2;  // it was attached: its end is of interest, and it may come back
  return group.connection != 0 || group.results_connection != 0 ? 1 : 0;
}

// At most kMaxFaultBytes, without half a UTF-8 character at the end.
std::string CutFault(std::string text) {
  if (text.size() <= kMaxFaultBytes) return text;
  size_t end = kMaxFaultBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text;
}

}  // namespace

absl::Status EngineCore::CheckHello(const v1::Hello& hello) const {
  if (hello.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("protocol version ", hello.protocol_version(),
                                                      ", the coordinator speaks ",
                                                      kProtocolVersion));
  }
  if (hello.group().empty() || hello.group().size() > kMaxGroupNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group name of ", hello.group().size(), " bytes; it must have 1 to ", kMaxGroupNameBytes));
  }
  if (!hello.text_hash().empty() && !options_.text_hash.empty() &&
      hello.text_hash() != options_.text_hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("text_hash ", hello.text_hash(), " of the group's model differs from ",
                     options_.text_hash, " of the coordinator's: tokenizer, template or ",
                     "generation config are not the same files"));
  }
  const NamedLimit limits[] = {
      {"vocabulary_size", hello.vocabulary_size(), kMaxVocabulary},
      {"context_length", hello.context_length(), INT32_MAX},
      {"block_count", hello.block_count(), kMaxBlocks},
      {"slot_count", hello.slot_count(), kMaxSlots},
      {"step_tokens", hello.step_tokens(), kMaxStepTokens},
      {"layout.tensor_parallel", hello.layout().tensor_parallel(), kMaxHidden},
      {"layout.pipeline_parallel", hello.layout().pipeline_parallel(), kMaxStages},
  };
  for (const NamedLimit& limit : limits) {
    if (limit.value == 0 || limit.value > limit.limit) {
      return absl::InvalidArgumentError(absl::StrCat("Hello says ", limit.name, " ", limit.value,
                                                     "; it must be 1 to ", limit.limit));
    }
  }
  const uint32_t tokens = hello.block_tokens();
  if (tokens != 16 && tokens != 32 && tokens != 64 && tokens != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("Hello says block_tokens ", tokens, "; it must be 16, 32, 64 or 128"));
  }
  if (hello.last_epoch() >= kMaxEpoch) {
    return absl::InvalidArgumentError(absl::StrCat("Hello says last_epoch ", hello.last_epoch(),
                                                   "; it must be below ", kMaxEpoch));
  }
  for (const auto& [name, group] : groups_) {
    if (group->ready() && name != hello.group() &&
        group->hello.fingerprint() != hello.fingerprint()) {
      return absl::FailedPreconditionError(
          absl::StrCat("fingerprint ", hello.fingerprint(), " differs from ",
                       group->hello.fingerprint(), " of the attached group \"", name, "\""));
    }
  }
  return absl::OkStatus();
}

Group* EngineCore::FindGroup(const std::string& name) {
  const auto it = groups_.find(name);
  return it == groups_.end() ? nullptr : it->second.get();
}

// The group of that name, made if there is room; null if not. In a full table a group that attaches
// takes the place of the least worth, of those the one longest unchanged; what merely speaks of
// itself takes only the place of a name that never attached and has no connection.
Group* EngineCore::GroupEntry(const std::string& name, bool attaching) {
  if (Group* group = FindGroup(name)) return group;
  if (name.empty() || name.size() > kMaxGroupNameBytes) return nullptr;
  if (groups_.size() >= kMaxGroups) {
    auto oldest = groups_.end();
    for (auto it = groups_.begin(); it != groups_.end(); ++it) {
      const Group& group = *it->second;
      if (group.ready() || (!attaching && Worth(group) > 0)) continue;
      const auto rank = std::make_pair(Worth(group), group.changed);
      if (oldest == groups_.end() ||
          rank < std::make_pair(Worth(*oldest->second), oldest->second->changed)) {
        oldest = it;
      }
    }
    if (oldest == groups_.end()) return nullptr;
    groups_.erase(oldest);
  }
  auto group = std::make_unique<Group>();
  group->name = name;
  Group* entry = group.get();
  groups_.emplace(name, std::move(group));
  return entry;
}

void EngineCore::GroupProgress(uint64_t connection, v1::Progress progress, TimeUs now) {
  Group* group = GroupEntry(progress.group(), false);
  // A group that works is not disturbed by another process that loads under its name; Hello
  // decides.
  if (group == nullptr || group->ready()) return;
  if (group->connection != connection) group->loading_since = now;
  group->state = v1::GROUP_STATE_LOADING;
  group->connection = connection;
  group->changed = now;
  group->progress = std::move(progress);
}

void EngineCore::GroupAttached(uint64_t connection, v1::Hello hello,
                               std::shared_ptr<GroupLink> link, TimeUs now) {
  const absl::Status check = CheckHello(hello);
  if (!check.ok()) {
    LOG_ERROR("group \"{}\" refused: {}", hello.group(), std::string(check.message()));
    link->Close(check);
    return;
  }
  Group* group = GroupEntry(hello.group(), true);
  if (group == nullptr) {
    link->Close(absl::ResourceExhaustedError(
        absl::StrCat("the coordinator already has ", kMaxGroups, " groups")));
    return;
  }
  if (group->ready()) {
    LoseGroup(*group, absl::AbortedError("a newer Attach of the same group ends this one"),
              group->scheduler->oldest_plan(), now);
  }
  // A group that only dials again has not loaded again.
  if (group->connection == connection && group->loading_since != kNever) {
    group->load_time = now - group->loading_since;
  }
  group->loading_since = kNever;
  last_epoch_ = std::max({last_epoch_ + 1, options_.start_time_us, hello.last_epoch() + 1});
  group->connection = connection;
  group->epoch = last_epoch_;
  group->hello = std::move(hello);
  group->link = std::move(link);
  group->state = v1::GROUP_STATE_READY;
  group->changed = now;
  group->answered = false;
  group->last_sent = kNever;
  group->head_since = now;
  SchedulerLimits limits;
  limits.epoch = group->epoch;
  limits.slot_count = group->hello.slot_count();
  limits.block_count = group->hello.block_count();
  limits.block_tokens = group->hello.block_tokens();
  limits.step_tokens = group->hello.step_tokens();
  limits.prefill_rows = std::max(1U, options_.prefill_rows);
  limits.stages = group->hello.layout().pipeline_parallel();
  limits.vocabulary_size = group->hello.vocabulary_size();
  limits.step_target_us = options_.step_target_us;
  limits.prefix_cache = options_.prefix_cache;
  limits.prefix_secret = options_.prefix_secret;
  group->scheduler = std::make_unique<Scheduler>(limits);
  if (trace_ != nullptr) group->trace_id = trace_->AddGroup(group->name, limits.stages);
  UpdateLimits();
  LOG_INFO("group \"{}\" attached, epoch {}, {} slots, {} blocks of {} tokens", group->name,
           group->epoch, limits.slot_count, limits.block_count, limits.block_tokens);
  group->link->Welcome(group->epoch);
}

void EngineCore::ResultsConnected(const std::string& name, uint64_t connection, TimeUs now) {
  Group* group = GroupEntry(name, false);
  if (group == nullptr) return;
  if (group->state == v1::GROUP_STATE_UNSPECIFIED) {
    group->state = v1::GROUP_STATE_LOADING;
    group->changed = now;
  }
  if (group->results_connection != 0) ResultsLost(name, group->results_connection, now);
  group->results_connection = connection;
}

void EngineCore::ResultsLost(const std::string& name, uint64_t connection, TimeUs now) {
  Group* group = FindGroup(name);
  if (group == nullptr || group->results_connection != connection) return;
  group->results_connection = 0;
  // Before the first answer the stream may be one of the incarnation before, whose end is noticed
  // late.
  if (!group->ready() || !group->answered) return;
  if (group->scheduler->in_flight() == 0) {
    group->head_since = now;
  } else {
    LoseGroup(*group, absl::UnavailableError("the Results stream broke with plans in flight"),
              group->scheduler->oldest_plan(), now);
  }
}

void EngineCore::GroupResult(const std::string& name, const v1::StepResult& result, TimeUs now) {
  Group* group = FindGroup(name);
  if (group == nullptr || !group->ready() || result.epoch() != group->epoch) {
    LOG_DEBUG("result of plan {} of group \"{}\" dropped: epoch {} is over", result.plan_id(), name,
              result.epoch());
    return;
  }
  Scheduler& scheduler = *group->scheduler;
  const uint32_t entries = scheduler.entries_of_oldest();
  const uint32_t in_flight = scheduler.in_flight();
  const absl::Status applied = scheduler.Apply(result, &outcomes_);
  if (!applied.ok()) {
    LoseGroup(*group, applied, scheduler.oldest_plan(), now);
    return;
  }
  const TimeUs sent = group->sent.front();
  group->sent.pop_front();
  group->head_since = now;
  if (!group->answered) {
    group->answered = true;
    LOG_INFO("group \"{}\" answered its first plan", group->name);
  }
  if (trace_ != nullptr) {
    trace_->Plan({group->trace_id, sent, now, entries, in_flight}, result);
  }
  measured_.repeated_passes += result.repeated_passes();
  if (entries > 0) {
    ++plans_total_;
    entries_total_ += entries;
    uint64_t step_us = 0;
    for (const v1::StageTime& stage : result.stages()) step_us += stage.compute_us();
    if (result.stages_size() == 0) step_us = static_cast<uint64_t>(now - sent);
    group->last_step_ms = static_cast<double>(step_us) / 1000.0;
    group->step_time.Observe(static_cast<int64_t>(step_us));
  }
  for (const Scheduler::Outcome& outcome : outcomes_) {
    if (outcome.status == v1::ENTRY_STATUS_OK) {
      OnAnswer(outcome, now);
    } else {
      ++measured_.bad_logits;
      EndWithError(*outcome.sequence,
                   absl::InternalError(absl::StrCat("the logits after position ",
                                                    outcome.sequence->computed - 1,
                                                    " hold a NaN or allow no id")),
                   now);
    }
  }
}

void EngineCore::GroupFault(const v1::Fault& fault, TimeUs now) {
  Group* group = FindGroup(fault.group());
  if (group == nullptr) return;
  group->last_fault = CutFault(absl::StrCat("rank ", fault.rank(), ", stage ", fault.stage(),
                                            ", layer ", fault.layer(), ", plan ", fault.plan_id(),
                                            ": ", fault.operation(), ": ", fault.text()));
  LOG_ERROR("group \"{}\" epoch {}: {}", group->name, fault.epoch(), group->last_fault);
  if (!group->ready() || fault.epoch() != group->epoch) return;
  // A fault overtakes the results of the plans before it: it knows better which step died.
  const Scheduler& scheduler = *group->scheduler;
  const bool known =
      fault.plan_id() >= scheduler.oldest_plan() && fault.plan_id() < scheduler.next_plan();
  LoseGroup(*group, absl::UnavailableError(group->last_fault),
            known ? fault.plan_id() : scheduler.oldest_plan(), now);
}

void EngineCore::GroupLost(uint64_t connection, const absl::Status& why, TimeUs now) {
  for (const auto& [name, group] : groups_) {
    if (group->connection != connection) continue;
    if (group->ready()) {
      LoseGroup(*group, why, group->scheduler->oldest_plan(), now);
    } else if (group->state == v1::GROUP_STATE_LOADING) {
      group->state = v1::GROUP_STATE_LOST;
      group->connection = 0;
      group->changed = now;
    }
    return;
  }
}

// The dying step counts against the sequences in it (I6): twice without a token between makes a
// suspect, a suspect that was in a dying step again ends.
void EngineCore::CountLoss(Sequence& sequence, TimeUs now) {
  if (sequence.suspect) {
    EndWithError(sequence,
                 absl::InternalError(absl::StrCat(
                     "the group died ", sequence.losses + 1,
                     " times in a step of this sequence, the last time with it alone")),
                 now);
    return;
  }
  if (++sequence.losses < 2) return;
  waiting_.Remove(sequence);
  sequence.suspect = true;
  sequence.queue_order = newest_id_ + 1;  // behind all that came so far, before all that will
  waiting_.Add(sequence);
}

void EngineCore::LoseGroup(Group& group, const absl::Status& why, uint64_t dying_plan, TimeUs now) {
  PERGOLA_CHECK(group.ready());
  LOG_WARN("group \"{}\" lost, epoch {}, {} sequences to replay: {}", group.name, group.epoch,
           group.scheduler->running().size(), std::string(why.message()));
  const std::vector<Sequence*> dying = group.scheduler->SequencesOf(dying_plan);
  while (!group.scheduler->running().empty()) {
    Sequence& sequence = *group.scheduler->running().back();
    group.scheduler->Release(sequence);
    ++replays_;
    sequence.continued = true;
    waiting_.Add(sequence);
  }
  past_overrun_tokens_ += group.scheduler->overrun_tokens();
  past_preemptions_ += group.scheduler->preemptions();
  past_prefixes_ += group.scheduler->prefix_counts();
  const std::shared_ptr<GroupLink> link = std::move(group.link);
  group.link = nullptr;
  group.scheduler.reset();
  group.sent.clear();
  group.state = v1::GROUP_STATE_LOST;
  group.changed = now;
  group.connection = 0;
  group.answered = false;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->running() || sequence->numerics_id != group.hello.numerics_id() ||
        sequence->numerics_id.empty()) {
      continue;
    }
    sequence->home_since = now;
    next_failover_ = std::min(next_failover_, now + options_.failover_wait_us);
  }
  for (Sequence* sequence : dying) CountLoss(*sequence, now);
  UpdateLimits();
  link->Close(why);
}

void EngineCore::Shutdown(const absl::Status& status, TimeUs now) {
  EndAll(status, now);
  for (const auto& [name, group] : groups_) {
    if (group->ready()) LoseGroup(*group, status, 0, now);
  }
}

void EngineCore::UpdateLimits() {
  const Group* largest = nullptr;
  uint64_t most = 0;
  for (const auto& [name, group] : groups_) {
    const uint64_t kv_tokens =
        static_cast<uint64_t>(group->hello.block_count()) * group->hello.block_tokens();
    if (!group->ready() || (largest != nullptr && kv_tokens <= most)) continue;
    largest = group.get();
    most = kv_tokens;
  }
  ++limits_version_;
  limits_.attached = largest != nullptr;
  if (largest == nullptr) return;
  const v1::Hello& hello = largest->hello;
  limits_.context_length = hello.context_length();
  limits_.vocabulary_size = hello.vocabulary_size();
  limits_.kv_tokens = most;
  limits_.block_tokens = hello.block_tokens();
  limits_.numerics_id = hello.numerics_id();
  limits_.fingerprint = hello.fingerprint();
  limits_.architecture = hello.architecture();
  limits_.bitwise = hello.bitwise();
}

void EngineCore::CheckTimeouts(TimeUs now) {
  for (const auto& [name, group] : groups_) {
    if (!group->ready() || group->head_since + options_.step_timeout_us > now) continue;
    const int64_t limit_ms = options_.step_timeout_us / 1000;
    const uint64_t oldest = group->scheduler->oldest_plan();
    if (!group->sent.empty()) {
      LoseGroup(*group,
                absl::DeadlineExceededError(
                    absl::StrCat("plan ", oldest, " was not answered within ", limit_ms, " ms")),
                oldest, now);
    } else if (group->results_connection == 0) {
      LoseGroup(
          *group,
          absl::DeadlineExceededError(absl::StrCat("no Results stream within ", limit_ms, " ms")),
          oldest, now);
    }
  }
}

void EngineCore::SendPlan(Group& group, std::shared_ptr<v1::StepPlan> plan, TimeUs now) {
  if (group.sent.empty()) group.head_since = now;
  group.sent.push_back(now);
  group.last_sent = now;
  group.link->Send(std::move(plan));
}

bool EngineCore::serving() const {
  if (draining_) return false;
  return std::any_of(groups_.begin(), groups_.end(), [](const auto& entry) {
    return entry.second->can_send() && entry.second->answered;
  });
}

}  // namespace pergola
