// The engine thread around EngineCore: an inbox, a clock and nothing else. Every public function
// may be called from any thread and never blocks; the core runs on the engine's own thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/engine/group_link.h"
#include "coordinator/engine/overload.h"
#include "coordinator/engine/prefix_index.h"
#include "coordinator/engine/request.h"
#include "pergola/v1/admin.pb.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

// Bounds and waits, with their flags' defaults.
struct EngineOptions {
  std::string text_hash;  // of the coordinator's text parts; a group with another is refused
  uint32_t max_queued_sequences = 1024;   // waiting for a slot; beyond: RESOURCE_EXHAUSTED
  int64_t max_queued_bytes = 256 << 20;   // of queued prompts
  int64_t step_timeout_us = 60'000'000;   // a plan unanswered for longer loses the group
  int64_t failover_wait_us = 10'000'000;  // a lost sequence waits so long for its own numerics id
  int64_t probe_interval_us = 1'000'000;  // empty plan while idle
  uint64_t start_time_us = 0;             // since 1970: the first epoch
  // Most prompt rows per plan beside decodes (chunked prefill), where no step target rules.
  uint32_t prefill_rows = 256;
  // While sequences decode, prompts get the rows that keep a step within this time, by measured
  // cost: the longest pause that a prompt may put between two tokens of the others. 100 ms is ten
  // tokens a second, faster than people read, and on any device a step large enough to be
  // efficient. 0: prefill_rows always.
  int64_t step_target_us = 100'000;
  bool prefix_cache = true;
  // The secret of the prefix cache's keys. Both zero: the engine draws one.
  PrefixKey prefix_secret;
  // Estimated wait for a slot beyond which a request is refused (RESOURCE_EXHAUSTED); 0: none.
  int64_t max_queue_wait_us = 60'000'000;
  // A sequence whose mailbox stays full so long ends (RESOURCE_EXHAUSTED).
  int64_t slow_reader_timeout_us = 30'000'000;
  // Tells every ended sequence, and refusals at most once a second, at level info (request_log.h).
  bool log_requests = false;
};

// What doors need to know of the groups to validate a request; changes when groups come and go.
struct ServingLimits {
  bool attached =
      false;  // some group is attached; else the fields below are of the last one, or zero
  uint32_t context_length = 0;
  uint32_t vocabulary_size = 0;
  uint64_t kv_tokens = 0;  // positions all blocks of the largest group hold
  uint32_t block_tokens = 0;
  std::string numerics_id;
  std::string fingerprint;
  std::string architecture;
  bool bitwise = false;
};

class Engine {
 public:
  // Starts the thread. `trace_path`: Chrome trace JSON of plans, written until Stop; empty: none.
  explicit Engine(EngineOptions options, const std::string& trace_path = "");
  ~Engine();  // Stop()

  // Admission: reserves a place in the bounded waiting queue, or refuses (overload.h:
  // RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, UNAVAILABLE; RefusalReason() and RetryDelayUs() read
  // what the status carries). On OK the mailbox gets exactly one end, whatever happens.
  absl::StatusOr<SequenceId> Submit(SequenceRequest request);
  // A door refused a request before it came to Submit(): for metrics and the log. The id may be
  // empty: not every refused request was read.
  void CountRefusal(Refusal refusal, const std::string& request_id, const absl::Status& status);
  // The sequence ends with `status` (CANCELLED, DEADLINE_EXCEEDED); its slot and blocks are free
  // within two steps. Unknown or ended ids are ignored.
  void Cancel(SequenceId id, absl::Status status);

  ServingLimits limits() const;
  // Snapshot by `done` on the engine thread.
  void Status(const std::function<void(v1::StatusResponse)>& done);
  // Refuses new work, then calls `done` once when nothing runs or `timeout_us` is over (the rest
  // ends UNAVAILABLE).
  void Drain(int64_t timeout_us, const std::function<void(v1::DrainResponse)>& done);
  bool draining() const;
  // Called on the engine thread whenever `serving` changes: a group is attached and has answered a
  // plan, not draining.
  void OnServingChanged(std::function<void(bool serving)> callback);

  // Links. `connection` names one Attach stream, chosen by the link, never reused.
  void GroupProgress(uint64_t connection, v1::Progress progress);
  void GroupAttached(uint64_t connection, v1::Hello hello, std::shared_ptr<GroupLink> link);
  // The Results stream of a group came or went; plans are sent only while it is there.
  void ResultsConnected(std::string group, uint64_t connection);
  void ResultsLost(std::string group, uint64_t connection);
  void GroupResult(std::string group, v1::StepResult result);
  void GroupFault(v1::Fault fault);
  void GroupLost(uint64_t connection, absl::Status why);

  // Ends every sequence with UNAVAILABLE and joins the thread. Idempotent.
  void Stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pergola
