// The engine without its thread: a state machine that owns the waiting queue, every sequence, and
// one scheduler per group. Time comes in as an argument, plans go out through GroupLink, tokens
// through mailboxes. Not thread-safe.
//
// Calls change state; Advance() does what follows from it (timeouts, plans). Call it after every
// event or batch of events and not later than NextWake().
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/group.h"
#include "coordinator/engine/measurements.h"
#include "coordinator/engine/request_log.h"
#include "coordinator/engine/sequence.h"
#include "coordinator/engine/trace.h"
#include "coordinator/engine/waiting_queue.h"

namespace pergola {

class EngineCore {
 public:
  // `trace` may be null; otherwise borrowed.
  EngineCore(EngineOptions options, TimeUs now, Trace* trace);
  ~EngineCore();

  // `id` ascends from call to call. Bounds are the caller's to check (CheckLoad with load()).
  void Submit(SequenceId id, SequenceRequest request, TimeUs now);
  void Cancel(SequenceId id, const absl::Status& status, TimeUs now);
  // As Engine::Drain; refusing new work is the caller's.
  void Drain(int64_t timeout_us, std::function<void(v1::DrainResponse)> done, TimeUs now);
  // Ends every sequence with `status`.
  void EndAll(const absl::Status& status, TimeUs now);
  // EndAll, and closes the links of all groups.
  void Shutdown(const absl::Status& status, TimeUs now);

  void GroupProgress(uint64_t connection, v1::Progress progress, TimeUs now);
  void GroupAttached(uint64_t connection, v1::Hello hello, std::shared_ptr<GroupLink> link,
                     TimeUs now);
  void ResultsConnected(const std::string& group, uint64_t connection, TimeUs now);
  void ResultsLost(const std::string& group, uint64_t connection, TimeUs now);
  void GroupResult(const std::string& group, const v1::StepResult& result, TimeUs now);
  void GroupFault(const v1::Fault& fault, TimeUs now);
  void GroupLost(uint64_t connection, const absl::Status& why, TimeUs now);

  void Advance(TimeUs now);
  // When Advance() has something to do though nothing happens; kNever if never.
  TimeUs NextWake() const;

  bool serving() const;
  bool draining() const { return draining_; }
  uint32_t queued() const { return waiting_.size(); }
  int64_t queued_bytes() const { return waiting_.bytes(); }
  Load load(TimeUs now) const;
  size_t sequence_count() const { return sequences_.size(); }
  ServingLimits limits() const { return limits_; }
  // Raised whenever limits() may have changed.
  uint64_t limits_version() const { return limits_version_; }
  v1::StatusResponse Status(TimeUs now) const;
  // Called at the end of every sequence, before its mailbox is told.
  void OnSequenceEnd(std::function<void(SequenceEnd)> callback) { on_end_ = std::move(callback); }
  const std::map<std::string, std::unique_ptr<Group>>& groups() const { return groups_; }

 private:
  class GroupAdmission;
  struct PendingDrain {
    TimeUs deadline;
    std::function<void(v1::DrainResponse)> done;
    v1::DrainResponse response;
  };

  // engine_core.cc: sequences.
  void OnAnswer(const Scheduler::Outcome& outcome, TimeUs now);
  std::optional<v1::Finish> FinishOfScoring(const Sequence& sequence) const;
  void End(Sequence& sequence, absl::Status status, std::optional<v1::Finish> finish,
           Mailbox::Delivery delivery, TimeUs now);
  void EndWithError(Sequence& sequence, absl::Status status, TimeUs now);
  void MeasureEnd(Sequence& sequence, const absl::Status& status, v1::FinishReason finish,
                  TimeUs now);
  v1::StreamInfo InfoOf(const Sequence& sequence, uint64_t epoch) const;
  void ExpireSequences(TimeUs now);
  void AdvanceDrains(TimeUs now);

  // engine_readers.cc: mailboxes that are full.
  void Deliver(Sequence& sequence, Mailbox::Delivery delivery, TimeUs now);
  void CheckReaders(TimeUs now);

  // engine_groups.cc: groups.
  absl::Status CheckHello(const v1::Hello& hello) const;
  Group* FindGroup(const std::string& name);
  Group* GroupEntry(const std::string& name, bool attaching);
  void LoseGroup(Group& group, const absl::Status& why, uint64_t dying_plan, TimeUs now);
  void CountLoss(Sequence& sequence, TimeUs now);
  void UpdateLimits();
  void CheckTimeouts(TimeUs now);
  void SendPlan(Group& group, std::shared_ptr<v1::StepPlan> plan, TimeUs now);

  // engine_placement.cc: which sequence goes where.
  void Pump(TimeUs now);
  Sequence* NextFor(Group& group, TimeUs now);
  WaitingQueue::Verdict Consider(Sequence& sequence, Group& group, TimeUs now);
  bool WaitsForLeader(Sequence& sequence) const;
  bool IsBetterElsewhere(Sequence& sequence, const Group& group, TimeUs now);
  bool NumericsAllow(const Sequence& sequence, const Group& group, TimeUs now);
  absl::Status Fits(const Sequence& sequence, const Group& group) const;
  void Placed(Sequence& sequence, Group& group, TimeUs now);

  const EngineOptions options_;
  const TimeUs started_;
  Trace* const trace_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  WaitingQueue waiting_;
  QueuePace pace_;
  std::set<std::pair<TimeUs, SequenceId>> deadlines_;
  SequenceId newest_id_ = 0;
  std::map<std::string, std::unique_ptr<Group>> groups_;
  uint64_t last_epoch_ = 0;
  TimeUs next_failover_ = kNever;  // not later than the first end of a wait for a numerics id
  std::vector<Scheduler::Outcome> outcomes_;               // scratch of GroupResult
  std::vector<std::pair<Sequence*, absl::Status>> unfit_;  // scratch of NextFor: fit no group
  std::set<SequenceId> paused_;                            // whose mailboxes are full
  TimeUs next_reader_check_ = kNever;
  bool draining_ = false;
  std::vector<PendingDrain> drains_;
  ServingLimits limits_;
  uint64_t limits_version_ = 0;

  uint64_t requests_total_ = 0;
  uint64_t tokens_total_ = 0;
  uint64_t replays_ = 0;
  uint64_t plans_total_ = 0;          // answered, probes not counted
  uint64_t entries_total_ = 0;        // of those
  uint64_t past_overrun_tokens_ = 0;  // of groups' earlier incarnations
  uint64_t past_preemptions_ = 0;
  PrefixCounts past_prefixes_;
  uint64_t pauses_ = 0;
  uint64_t slow_readers_ended_ = 0;
  Measurements measured_;
  std::function<void(SequenceEnd)> on_end_;
};

}  // namespace pergola
