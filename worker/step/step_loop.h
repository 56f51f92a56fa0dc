// What one rank does all day: take the next plan, meet its peers, execute, pass on. The same code
// on every rank; the layout says which of the ends it has. Knows nothing of gRPC or MPI.
//
//   rank 0         takes plans, sends them to the leaders of the other stages, executes the oldest
//   other leaders  receive plans from rank 0 and share them within their stage
//   every rank     checks the plan, executes it, sends its share of the activations to the next
//                  stage
//   last stage     its first rank gives the result away and sends the sampled ids to stage 0
//
// Each plan is begun and finished before the next, but where the executor runs ahead (GPUs of one
// stage that need no host to meet): there the next plan begins while the devices compute the one
// before, so that they never wait for the host. Results stay in plan order.
//
// Why ranks that run ahead never wait for each other in a circle. Devices meet in collectives that
// each host only enqueues, and hosts meet in the stage's communicator. Every rank makes the same
// sequence of both:
//   - What a rank does next follows from the frames (step_loop.cc) alone, which all ranks of the
//     stage get in one order: a plan is begun, and then the plan before it is finished; or the
//     oldest plan is finished first, because rank 0 saw its device idle. No other rank looks at its
//     own device or clock to decide.
//   - Begin and Finish of a plan make the same calls on every rank: they follow from the plan, from
//     slot tables that are the same everywhere, and from the answers and guesses of the devices,
//     which are the same bits on every rank (kernels/device_sampler.h). So all ranks find a guess
//     wrong or none does, all repeat the forward pass or none does, and all leave the same rows to
//     the host.
// Take the rank that is furthest behind in this sequence. What it enqueues waits for nobody. Where
// it waits for its device, everyone else has enqueued all that the device needs. Where it waits for
// the other hosts, they are there or beyond. So it goes on. A rank that fails leaves the sequence;
// its peers then learn it from the devices' group, or are ended by the watchdog.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/layout.h"
#include "pergola/v1/worker.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/transport.h"
#include "worker/comm/wait_board.h"
#include "worker/step/plan_source.h"
#include "worker/step/stage_executor.h"
#include "worker/step/token_board.h"
#include "worker/step/trace.h"

namespace pergola {

// All borrowed; they outlive the loop.
struct StepLoopParts {
  PlanSource* plans = nullptr;    // rank 0 only
  ResultSink* results = nullptr;  // first rank of the last stage only
  StageCommunicator* communicator = nullptr;
  Transport* transport = nullptr;  // may be null with one stage
  StageExecutor* executor = nullptr;
  WaitBoard* board = nullptr;
  Trace* trace = nullptr;  // may be null
};

struct StepLoopOptions {
  RankLayout layout;
  int64_t hidden = 0;       // values per row between stages
  int64_t step_tokens = 0;  // most rows of a plan
  // Microseconds since the Unix epoch; only for StageTime and the trace.
  std::function<int64_t()> now_us;
};

class StepLoop {
 public:
  StepLoop(const StepLoopOptions& options, const StepLoopParts& parts);
  ~StepLoop();
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  // Executes plans until the source ends (OK, on every rank) or something fails: the status names
  // plan and cause, and the group must end (DESIGN I6).
  absl::Status Run();

  // The oldest plan without a result, or the last one, for a Fault. Any thread.
  uint64_t epoch() const { return epoch_.load(std::memory_order_relaxed); }
  uint64_t plan_id() const { return plan_id_.load(std::memory_order_relaxed); }

 private:
  struct Pending {
    std::string frame;
    int64_t received_us;
  };

  // A plan that has begun, and what it needs to finish.
  struct Step {
    v1::StepPlan plan;
    int64_t received_us = 0;
    int64_t begin_us = 0;
    int64_t rows = 0;
    v1::StepResult times;  // plan, epoch and the stages' times so far
  };
  enum class Next { kPlan, kNone, kEnd };

  // The next plan into next_; kNone if the oldest step is to be finished first.
  absl::StatusOr<Next> NextPlan();
  // Rank 0: whether plans wait, or come before the oldest step is done.
  absl::StatusOr<bool> PlanComes();
  // The next frame (see step_loop.cc) that this rank's stage is given.
  absl::StatusOr<std::string> NextFrame();
  // Rank 0: passes on all plans that wait; sleeps for one if none is queued, and passes on a tick
  // if none comes.
  absl::Status TakePlans();
  absl::Status Forward(const std::string& frame);
  absl::Status ShareInStage(std::string* frame);

  // Checks next_ and begins it; an old epoch's is dropped.
  absl::Status Begin();
  absl::Status Execute(Step* step);
  // Of an epoch that is not over.
  absl::Status CheckOrder();
  absl::Status ResolveIds(const v1::StepPlan& plan);
  absl::StatusOr<int32_t> Resolve(const v1::TokenRef& reference);
  absl::Status ReceiveTokens();
  // Of `rows` rows: none where the executor moves them itself.
  absl::Status ReceiveHidden(Step* step, int64_t rows);
  absl::Status SendHidden(const Step& step, int64_t rows);
  absl::Status SendTokens(const v1::StepResult& result);
  // The oldest step, and all of them; the error names the plan.
  absl::Status FinishOldest();
  absl::Status FinishAll();
  absl::Status Finish(Step* step);
  absl::Status Answer(Step* step, std::vector<v1::EntryResult> entries);

  const StepLoopOptions options_;
  const RankLayout& layout_;
  const StepLoopParts parts_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<uint64_t> plan_id_{0};

  std::deque<Pending> queue_;  // rank 0: forwarded, not executed
  v1::StepPlan next_;
  int64_t received_us_ = 0;
  uint64_t last_begun_ = 0;      // of this epoch's plans, or refused
  std::deque<Step> steps_;       // begun, not finished; at most two
  int64_t finished_us_ = 0;      // when the last one was
  int64_t repeated_passes_ = 0;  // of the executor, that results have told
  TokenBoard tokens_;
  std::vector<int32_t> ids_;
  std::vector<float> hidden_;
  std::vector<uint8_t> message_;
};

}  // namespace pergola
