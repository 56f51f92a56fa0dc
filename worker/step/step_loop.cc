#include "worker/step/step_loop.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "worker/comm/backoff.h"
#include "worker/step/hop.h"

namespace pergola {
namespace {

// What rank 0 sends to the leaders, and they to their stages: one of these bytes, and after
// kPlanFrame the plan. A tick says that rank 0 lives though it has no plan, so that every wait of
// the others has a deadline. Only where the executor runs ahead: the oldest plan is to be finished
// before the next one comes.
constexpr char kPlanFrame = 'P';
constexpr char kTickFrame = 'T';
constexpr char kFinishFrame = 'F';
constexpr char kEndFrame = 'E';

// A frame goes through the stage as one message of this size, its length first, and the rest, if
// any, as a second message: a plan of some dozen decode entries needs one round.
constexpr size_t kFirstBytes = 2048;
constexpr size_t kLengthBytes = 8;

// While a device computes, the loop looks for the next plan: at first busily, for longer than the
// answer to the plan before takes to bring one, then in sleeps that are short beside a step.
constexpr BackoffOptions kPlanWait = {0, 20, 50, 500};

// References reach back at most the depth of the pipeline (stages + 1); some more cost nothing.
int BoardPlans(const RankLayout& layout) {
  return layout.pipeline_parallel + 1 + 8;
}

void PutLength(uint64_t length, uint8_t* out) {
  for (size_t i = 0; i < kLengthBytes; ++i) out[i] = static_cast<uint8_t>(length >> (8 * i));
}

uint64_t GetLength(const uint8_t* in) {
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= static_cast<uint64_t>(in[i]) << (8 * i);
  return length;
}

}  // namespace

StepLoop::StepLoop(const StepLoopOptions& options, const StepLoopParts& parts)
    : options_(options), layout_(options_.layout), parts_(parts), tokens_(BoardPlans(layout_)) {
  PERGOLA_CHECK(parts.communicator != nullptr && parts.executor != nullptr &&
                parts.board != nullptr && options.now_us);
  PERGOLA_CHECK(layout_.world_rank != 0 || parts.plans != nullptr);
  PERGOLA_CHECK(!layout_.last_stage() || !layout_.leader() || parts.results != nullptr);
  PERGOLA_CHECK(layout_.pipeline_parallel == 1 || parts.transport != nullptr);
  PERGOLA_CHECK(!parts.executor->RunsAhead() || layout_.pipeline_parallel == 1);
  const int64_t tp = layout_.tensor_parallel;
  // Rank 0 alone looks whether its device is done. Another's that has failed would keep it waiting.
  if (tp > 1 && parts.executor->RunsAhead() && !layout_.leader()) {
    parts.communicator->WatchIdleWaits(
        [this] { return steps_.empty() ? absl::OkStatus() : parts_.executor->Ready().status(); });
  }
  // Room for the padding of the shares.
  hidden_.resize(options.step_tokens * options.hidden + tp);
  ids_.reserve(options.step_tokens);
}

StepLoop::~StepLoop() {
  parts_.communicator->WatchIdleWaits(nullptr);
}

absl::Status StepLoop::Run() {
  while (true) {
    const absl::StatusOr<Next> next = NextPlan();
    absl::Status status = next.status();
    const bool plan = next.ok() && *next == Next::kPlan;
    if (plan) status = Begin();
    // What computes while the next plan is prepared is finished when that has begun, or when there
    // is none. What came before a plan that fails is answered.
    const size_t unfinished = plan && status.ok() && parts_.executor->RunsAhead() ? 1 : 0;
    while (steps_.size() > unfinished) RETURN_IF_ERROR(FinishOldest());
    if (!status.ok()) return status;
    if (*next == Next::kEnd) return parts_.executor->Drain();
  }
}

absl::Status StepLoop::Forward(const std::string& frame) {
  for (int stage = 1; stage < layout_.pipeline_parallel; ++stage) {
    RETURN_IF_ERROR(parts_.transport->Send(layout_.RankOf(stage, 0), Tag::kPlan, frame.data(),
                                           static_cast<int64_t>(frame.size())));
  }
  return absl::OkStatus();
}

absl::Status StepLoop::TakePlans() {
  while (true) {
    const bool wait = queue_.empty() && steps_.empty();
    // A sleeping main thread moves no message, so everything leaves first.
    if (wait && parts_.transport != nullptr) RETURN_IF_ERROR(parts_.transport->Flush());
    v1::StepPlan plan;
    ASSIGN_OR_RETURN(const PlanSource::Next next, parts_.plans->Take(wait, &plan));
    if (next == PlanSource::Next::kNone && !wait) return absl::OkStatus();
    Pending pending = {std::string(1, kTickFrame), options_.now_us()};
    if (next == PlanSource::Next::kPlan) pending.frame = kPlanFrame + plan.SerializeAsString();
    if (next == PlanSource::Next::kEnd) pending.frame = kEndFrame;
    RETURN_IF_ERROR(Forward(pending.frame));
    queue_.push_back(std::move(pending));
    if (next == PlanSource::Next::kPlan) continue;
    return parts_.transport == nullptr ? absl::OkStatus() : parts_.transport->Flush();
  }
}

absl::Status StepLoop::ShareInStage(std::string* frame) {
  if (layout_.tensor_parallel == 1) return absl::OkStatus();
  uint8_t first[kFirstBytes] = {};
  const size_t room = kFirstBytes - kLengthBytes;
  if (layout_.leader()) {
    PutLength(frame->size(), first);
    std::copy_n(frame->begin(), std::min(room, frame->size()), first + kLengthBytes);
  }
  RETURN_IF_ERROR(parts_.communicator->Broadcast(first, kFirstBytes, 0, /*idle=*/true));
  if (!layout_.leader()) {
    frame->resize(GetLength(first));
    std::copy_n(first + kLengthBytes, std::min(room, frame->size()), frame->begin());
  }
  if (frame->size() <= room) return absl::OkStatus();
  return parts_.communicator->Broadcast(frame->data() + room,
                                        static_cast<int64_t>(frame->size() - room), 0,
                                        /*idle=*/false);
}

absl::StatusOr<std::string> StepLoop::NextFrame() {
  std::string frame;
  if (layout_.world_rank == 0) {
    const bool ending = !queue_.empty() && queue_.back().frame[0] == kEndFrame;
    if (!ending) RETURN_IF_ERROR(TakePlans());
    frame = std::move(queue_.front().frame);
    received_us_ = queue_.front().received_us;
    queue_.pop_front();
  } else if (layout_.leader()) {
    RETURN_IF_ERROR(parts_.transport->Receive(0, Tag::kPlan, &message_, /*idle=*/true));
    frame.assign(reinterpret_cast<const char*>(message_.data()), message_.size());
    received_us_ = options_.now_us();
  }
  RETURN_IF_ERROR(ShareInStage(&frame));
  if (!layout_.leader()) received_us_ = options_.now_us();
  return frame;
}

absl::StatusOr<bool> StepLoop::PlanComes() {
  ScopedWait wait(*parts_.board, "execute plan", steps_.front().plan.plan_id(), -1);
  Backoff backoff(kPlanWait);
  while (queue_.empty()) {
    RETURN_IF_ERROR(TakePlans());
    if (!queue_.empty()) break;
    ASSIGN_OR_RETURN(const bool ready, parts_.executor->Ready());
    if (ready) return false;
    backoff.Pause();
  }
  return true;
}

absl::StatusOr<StepLoop::Next> StepLoop::NextPlan() {
  while (true) {
    if (!steps_.empty() && layout_.world_rank == 0) {
      ASSIGN_OR_RETURN(const bool comes, PlanComes());
      if (!comes) {
        std::string finish(1, kFinishFrame);
        RETURN_IF_ERROR(ShareInStage(&finish));
        return Next::kNone;
      }
    }
    ASSIGN_OR_RETURN(const std::string frame, NextFrame());
    const char kind = frame.empty() ? '\0' : frame[0];
    if (kind == kTickFrame) continue;
    if (kind == kFinishFrame && !steps_.empty()) return Next::kNone;
    if (kind == kEndFrame) return Next::kEnd;
    if (kind == kPlanFrame &&
        next_.ParseFromArray(frame.data() + 1, static_cast<int>(frame.size() - 1))) {
      return Next::kPlan;
    }
    return absl::InternalError(
        absl::StrCat("a plan of ", frame.size(), " bytes came damaged from rank 0"));
  }
}

absl::Status StepLoop::CheckOrder() {
  if (next_.epoch() > epoch()) {
    RETURN_IF_ERROR(FinishAll());
    epoch_.store(next_.epoch(), std::memory_order_relaxed);
    plan_id_.store(0, std::memory_order_relaxed);
    last_begun_ = 0;
    tokens_.Clear();
    parts_.executor->ForgetSlots();
  }
  if (next_.plan_id() != last_begun_ + 1) {
    return absl::InvalidArgumentError(absl::StrCat("plan_id is ", next_.plan_id(), "; expected ",
                                                   last_begun_ + 1, " in epoch ", epoch()));
  }
  last_begun_ = next_.plan_id();
  if (steps_.empty()) plan_id_.store(last_begun_, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status StepLoop::Begin() {
  if (next_.epoch() < epoch()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckOrder());
  const auto prefixed = [id = last_begun_](const absl::Status& status) {
    return status.ok() ? status : Prefixed(status, absl::StrCat("plan ", id));
  };
  RETURN_IF_ERROR(prefixed(parts_.executor->Validate(next_)));
  const int64_t rows = PlanRows(next_);
  if (rows > options_.step_tokens) {
    return prefixed(absl::InvalidArgumentError(absl::StrCat(
        "entries have ", rows, " tokens; the limit is ", options_.step_tokens, " per step")));
  }
  if (!steps_.empty() && !parts_.executor->MayBegin(next_)) RETURN_IF_ERROR(FinishAll());
  if (!steps_.empty()) tokens_.Expect(steps_.back().plan);
  RETURN_IF_ERROR(prefixed(ResolveIds(next_)));
  Step& step = steps_.emplace_back();
  step.plan.Swap(&next_);
  step.rows = rows;
  const absl::Status begun = Execute(&step);
  if (!begun.ok()) steps_.pop_back();
  return prefixed(begun);
}

absl::Status StepLoop::Execute(Step* step) {
  step->received_us = received_us_;
  step->times.set_plan_id(step->plan.plan_id());
  step->times.set_epoch(step->plan.epoch());
  if (!layout_.first_stage() && !parts_.executor->hops_on_device()) {
    RETURN_IF_ERROR(ReceiveHidden(step, step->rows));
  }
  step->begin_us = options_.now_us();
  // Within it the collectives publish their own waits; a computation that never returns is overdue
  // too.
  ScopedWait wait(*parts_.board, "execute plan", step->plan.plan_id(), -1);
  return parts_.executor->Begin(step->plan, ids_, hidden_.data());
}

absl::Status StepLoop::FinishAll() {
  while (!steps_.empty()) RETURN_IF_ERROR(FinishOldest());
  return absl::OkStatus();
}

absl::Status StepLoop::FinishOldest() {
  const uint64_t id = steps_.front().plan.plan_id();
  const absl::Status done = Finish(&steps_.front());
  if (!done.ok()) {
    steps_.clear();  // the group ends with this one
    return Prefixed(done, absl::StrCat("plan ", id));
  }
  steps_.pop_front();
  plan_id_.store(steps_.empty() ? last_begun_ : steps_.front().plan.plan_id(),
                 std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status StepLoop::Finish(Step* step) {
  std::vector<v1::EntryResult> entries;
  {
    ScopedWait wait(*parts_.board, "execute plan", step->plan.plan_id(), -1);
    RETURN_IF_ERROR(parts_.executor->Finish(&entries));
  }
  // Where the hidden state goes from device to device, the message has the times only, and comes
  // when the stage before is done.
  const bool on_device = parts_.executor->hops_on_device();
  if (!layout_.first_stage() && on_device) RETURN_IF_ERROR(ReceiveHidden(step, 0));
  // A step that began beside the one before has its turn when that is done.
  const int64_t begin_us = std::max(step->begin_us, finished_us_);
  const int64_t end_us = finished_us_ = options_.now_us();
  v1::StageTime* time = step->times.add_stages();
  time->set_start_us(static_cast<uint32_t>(std::max<int64_t>(0, begin_us - step->received_us)));
  time->set_compute_us(static_cast<uint32_t>(std::max<int64_t>(0, end_us - begin_us)));
  if (parts_.trace != nullptr) {
    parts_.trace->Complete("step", begin_us, end_us, step->plan.plan_id(), step->rows);
  }
  if (!layout_.last_stage()) return SendHidden(*step, on_device ? 0 : step->rows);
  return Answer(step, std::move(entries));
}

absl::Status StepLoop::ResolveIds(const v1::StepPlan& plan) {
  ids_.clear();
  for (const v1::Entry& entry : plan.entries()) {
    if (!entry.ids().empty()) {
      ids_.insert(ids_.end(), entry.ids().begin(), entry.ids().end());
    } else if (layout_.first_stage() || layout_.last_stage()) {
      ASSIGN_OR_RETURN(const int32_t id, Resolve(entry.from()));
      ids_.push_back(id);
    } else {
      ids_.push_back(0);  // counted here, read only in the first stage and the last
    }
  }
  if (layout_.first_stage() && !layout_.last_stage()) {
    // What has arrived is taken even if no entry refers to it, so that messages do not pile up.
    while (
        parts_.transport->Probe(layout_.RankOf(layout_.pipeline_parallel - 1, 0), Tag::kTokens)) {
      RETURN_IF_ERROR(ReceiveTokens());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> StepLoop::Resolve(const v1::TokenRef& reference) {
  if (reference.plan_id() == 0 || reference.plan_id() >= last_begun_) {
    return absl::InvalidArgumentError(absl::StrCat("from.plan_id is ", reference.plan_id(),
                                                   "; it must be an earlier plan, 1 to ",
                                                   last_begun_ - 1));
  }
  while (!layout_.last_stage() && tokens_.latest() < reference.plan_id()) {
    RETURN_IF_ERROR(ReceiveTokens());
  }
  return tokens_.Resolve(reference);
}

absl::Status StepLoop::ReceiveTokens() {
  const int from = layout_.RankOf(layout_.pipeline_parallel - 1, 0);
  RETURN_IF_ERROR(parts_.transport->Receive(from, Tag::kTokens, &message_, /*idle=*/false));
  v1::StepResult sampled;
  if (!sampled.ParseFromArray(message_.data(), static_cast<int>(message_.size()))) {
    return absl::InternalError(
        absl::StrCat("sampled ids of ", message_.size(), " bytes came damaged from rank ", from));
  }
  // Tokens of an epoch that has ended arrive late; nothing can refer to them.
  if (sampled.epoch() == epoch()) tokens_.Record(sampled.plan_id(), sampled.entries());
  return absl::OkStatus();
}

absl::Status StepLoop::ReceiveHidden(Step* step, int64_t rows) {
  const int tp = layout_.tensor_parallel;
  const int from = layout_.RankOf(layout_.stage - 1, layout_.tp_rank);
  const int64_t begin_us = options_.now_us();
  RETURN_IF_ERROR(parts_.transport->Receive(from, Tag::kHidden, &message_, /*idle=*/false));
  const int64_t share = HopShare(rows * options_.hidden, tp);
  float* own = hidden_.data() + share * layout_.tp_rank;
  RETURN_IF_ERROR(DecodeHop(message_, step->plan, share, &step->times, own));
  if (parts_.trace != nullptr) {
    parts_.trace->Complete("wait for the stage before", begin_us, options_.now_us(),
                           step->plan.plan_id(), step->rows);
  }
  if (share == 0) return absl::OkStatus();
  return parts_.communicator->AllGather(own, share * static_cast<int64_t>(sizeof(float)),
                                        hidden_.data());
}

absl::Status StepLoop::SendHidden(const Step& step, int64_t rows) {
  std::vector<uint8_t> message;
  EncodeHop(step.times, hidden_.data(), rows * options_.hidden, layout_.tp_rank,
            layout_.tensor_parallel, &message);
  const int to = layout_.RankOf(layout_.stage + 1, layout_.tp_rank);
  return parts_.transport->Send(to, Tag::kHidden, message.data(),
                                static_cast<int64_t>(message.size()));
}

// Only what a TokenBoard reads: log-probabilities stay.
absl::Status StepLoop::SendTokens(const v1::StepResult& result) {
  v1::StepResult sampled;
  sampled.set_plan_id(result.plan_id());
  sampled.set_epoch(result.epoch());
  for (const v1::EntryResult& entry : result.entries()) {
    v1::EntryResult* tokens = sampled.add_entries();
    *tokens->mutable_ids() = entry.ids();
    tokens->set_status(entry.status());
  }
  const std::string bytes = sampled.SerializeAsString();
  for (int tp_rank = 0; tp_rank < layout_.tensor_parallel; ++tp_rank) {
    RETURN_IF_ERROR(parts_.transport->Send(layout_.RankOf(0, tp_rank), Tag::kTokens, bytes.data(),
                                           static_cast<int64_t>(bytes.size())));
  }
  return absl::OkStatus();
}

absl::Status StepLoop::Answer(Step* step, std::vector<v1::EntryResult> entries) {
  if (static_cast<int>(entries.size()) != step->plan.entries_size()) {
    return absl::InternalError(absl::StrCat("the executor answered ", entries.size(), " of ",
                                            step->plan.entries_size(), " entries"));
  }
  v1::StepResult result;
  result.set_plan_id(step->plan.plan_id());
  result.set_epoch(step->plan.epoch());
  for (v1::EntryResult& entry : entries) *result.add_entries() = std::move(entry);
  const int64_t repeated = parts_.executor->repeated_passes();
  result.set_repeated_passes(static_cast<uint32_t>(repeated - repeated_passes_));
  repeated_passes_ = repeated;
  // Every rank of the last stage has sampled what later plans refer to.
  tokens_.Record(result.plan_id(), result.entries());
  if (!layout_.leader()) return absl::OkStatus();
  if (layout_.pipeline_parallel > 1) RETURN_IF_ERROR(SendTokens(result));
  result.mutable_stages()->Swap(step->times.mutable_stages());
  parts_.results->Push(std::move(result));
  return absl::OkStatus();
}

}  // namespace pergola
