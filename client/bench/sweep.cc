#include "client/bench/sweep.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/error_text.h"

namespace pergola {
namespace {

constexpr std::chrono::milliseconds kTick{50};

std::string FirstLine(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

void AddStatus(const v1::StatusResponse& status, SweepLimits* limits) {
  for (const v1::GroupStatus& group : status.groups()) {
    if (group.state() != v1::GROUP_STATE_READY) continue;
    limits->slots = limits->slots.value_or(0) + group.slots_total();
    limits->blocks += group.blocks_total();
    limits->block_tokens = std::max(1U, group.block_tokens());
    limits->load_s = std::max(limits->load_s, group.load_ms() / 1e3);
  }
}

std::string WhyNot(const SweepLimits& limits, const SweepPoint& point) {
  const uint64_t length = uint64_t{point.context} + point.output_tokens;
  if (length > limits.context_length) {
    return absl::StrCat(length, " tokens are above the context length of ", limits.context_length);
  }
  if (!limits.slots) return "";
  if (point.batch > *limits.slots) return absl::StrCat("the server has ", *limits.slots, " slots");
  const uint64_t each = (length + limits.block_tokens - 1) / limits.block_tokens;
  if (each * point.batch > limits.blocks) {
    return absl::StrCat("needs ", each * point.batch, " blocks, the server has ", limits.blocks);
  }
  return "";
}

std::vector<uint32_t> SweepBatches(uint32_t largest) {
  std::vector<uint32_t> batches;
  for (uint64_t batch = 1; batch < largest; batch *= 2) {
    batches.push_back(static_cast<uint32_t>(batch));
  }
  batches.push_back(largest);
  return batches;
}

BenchSweep::BenchSweep(const BenchPlan& plan, RequestShape shape, BenchStreams& streams,
                       BenchInterrupt& interrupt)
    : plan_(plan), shape_(shape), streams_(streams), interrupt_(interrupt) {}

SweepResult BenchSweep::Run(const SweepLimits& limits) {
  SweepResult result;
  result.plan = plan_;
  for (const uint32_t context : plan_.sweep_contexts) {
    for (const uint32_t batch : SweepBatches(plan_.sweep_max_batch)) {
      SweepPoint point;
      point.context = context;
      point.batch = batch;
      point.output_tokens = plan_.output_tokens;
      point.remark = WhyNot(limits, point);
      if (point.remark.empty() && !Measure(&point)) {
        result.interrupted = true;
        return result;
      }
      result.points.push_back(point);
      // A larger one would not fit either.
      if (!point.fits) break;
    }
  }
  return result;
}

bool BenchSweep::Measure(SweepPoint* point) {
  Samples first_token_ms;
  Samples prefill_ms;
  Samples step_ms;
  Samples tokens_per_s;
  point->fits = true;
  for (uint32_t i = 0; i < plan_.sweep_repeats; ++i) {
    RunOnce(*point);
    if (interrupted_) return false;
    if (batch_.failed > 0) {
      point->fits = false;
      point->remark = absl::StrCat(batch_.failed, " of ", point->batch,
                                   " refused or failed: ", FirstLine(batch_.first_error));
      return true;
    }
    point->fits = point->fits && batch_.at_once;
    first_token_ms.Add(batch_.first_token_ms.Median());
    prefill_ms.Add(batch_.prefill_ms);
    tokens_per_s.Add(1e3 * static_cast<double>(batch_.tokens) / batch_.wall_ms);
    if (batch_.decode_tokens > 0) {
      step_ms.Add(batch_.decode_ms / static_cast<double>(batch_.decode_tokens));
    }
  }
  point->first_token_ms = first_token_ms.Median();
  point->prefill_ms = prefill_ms.Median();
  point->tokens_per_s = tokens_per_s.Median();
  if (!point->fits) {
    point->remark = "not all at once: a stream had ended before the last one began";
  } else if (step_ms.empty()) {
    point->remark = "no step seen: all tokens came at once";
  } else {
    point->step_ms = step_ms.Median();
  }
  return true;
}

void BenchSweep::RunOnce(const SweepPoint& point) {
  batch_ = Batch();
  batch_.output_tokens = point.output_tokens;
  shape_.prompt_tokens = point.context;
  shape_.output_tokens = point.output_tokens;
  // Made before the start: the making is not the server's time.
  std::vector<v1::GenerateRequest> requests(point.batch);
  for (v1::GenerateRequest& request : requests) FillRequest(shape_, next_number_++, &request);
  batch_.start = BenchClock::now();
  for (uint32_t i = 0; i < point.batch; ++i) {
    BenchStream* stream = streams_.Idle();
    stream->request.Swap(&requests[i]);
    stream->user = i;
    stream->address = 0;
    stream->scheduled = batch_.start;
    batch_.members.push_back({stream, 0, {}});
    streams_.Start(stream);
  }
  BenchClock::time_point look = batch_.start;
  while (streams_.in_flight() > 0) {
    const BenchClock::time_point now = streams_.Step(look + kTick, *this);
    if (now < look + kTick) continue;
    look = now;
    if (interrupted_ || !interrupt_.Seen()) continue;
    interrupted_ = true;
    streams_.CancelAll();
  }
}

void BenchSweep::OnTokens(const BenchStream& stream, uint32_t tokens, BenchClock::time_point) {
  batch_.tokens += tokens;
  if (stream.messages == 1) {
    batch_.prefill_ms = MillisecondsBetween(batch_.start, stream.first);
    batch_.first_token_ms.Add(batch_.prefill_ms);
    if (++batch_.begun == batch_.members.size() && !batch_.any_done) BeginDecoding();
  }
  if (stream.tokens < batch_.output_tokens) return;
  batch_.any_done = true;
  EndDecoding();
}

void BenchSweep::OnEnd(const BenchStream&, const grpc::Status& status, BenchClock::time_point now) {
  batch_.any_done = true;
  EndDecoding();
  batch_.wall_ms = MillisecondsBetween(batch_.start, now);
  if (status.ok()) return;
  if (batch_.failed++ == 0) batch_.first_error = ErrorText(status);
}

void BenchSweep::BeginDecoding() {
  batch_.decoding = true;
  batch_.at_once = true;
  for (Member& member : batch_.members) {
    member.tokens = member.stream->tokens;
    member.last = member.stream->last;
  }
}

// A stream that is one message behind has fewer tokens and less time, so the ratio of the sums has
// no bias.
void BenchSweep::EndDecoding() {
  if (!batch_.decoding) return;
  batch_.decoding = false;
  for (const Member& member : batch_.members) {
    batch_.decode_ms += MillisecondsBetween(member.last, member.stream->last);
    batch_.decode_tokens += member.stream->tokens - member.tokens;
  }
}

}  // namespace pergola
