#include "client/bench/run.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "client/error_text.h"

namespace pergola {
namespace {

// How often a signal is asked for; also the longest wait.
constexpr std::chrono::milliseconds kTick{50};
// Request numbers of warm-ups: their own, so that they leave no prefix for the measured requests.
constexpr uint64_t kWarmUpNumbers = 1ULL << 40;

class WarmUpEvents final : public BenchStreamEvents {
 public:
  void OnTokens(const BenchStream&, uint32_t, BenchClock::time_point) override {}
  void OnEnd(const BenchStream&, const grpc::Status& end, BenchClock::time_point) override {
    status = end;
  }
  grpc::Status status;
};

}  // namespace

absl::Status WarmUp(const BenchPlan& plan, const RequestShape& shape, BenchStreams& streams,
                    BenchInterrupt& interrupt) {
  WarmUpEvents events;
  for (size_t i = 0; i < plan.warmup * streams.addresses(); ++i) {
    BenchStream* stream = streams.Idle();
    FillRequest(shape, kWarmUpNumbers + i, &stream->request);
    stream->address = static_cast<uint32_t>(i % streams.addresses());
    streams.Start(stream);
    BenchClock::time_point look = BenchClock::now();
    while (streams.in_flight() > 0) {
      const BenchClock::time_point now = streams.Step(look + kTick, events);
      if (now < look + kTick) continue;
      look = now;
      if (interrupt.Seen()) streams.CancelAll();
    }
    RETURN_IF_ERROR(ToAbslStatus(events.status));
  }
  return absl::OkStatus();
}

std::unique_ptr<Load> MakeLoad(const BenchPlan& plan) {
  if (plan.mode == BenchMode::kOpen) {
    return std::make_unique<OpenLoad>(plan.rate_per_s, plan.burst, plan.seed);
  }
  if (plan.mode == BenchMode::kUsers) {
    return std::make_unique<UserLoad>(plan.users, plan.thinking, plan.seed);
  }
  return std::make_unique<UserLoad>(plan.streams, UserLoad::Thinking{}, plan.seed);
}

BenchRun::BenchRun(const BenchPlan& plan, const RequestShape& shape, BenchStreams& streams,
                   BenchInterrupt& interrupt)
    : plan_(plan), shape_(shape), streams_(streams), interrupt_(interrupt), load_(MakeLoad(plan)) {
  result_.plan = plan;
  result_.addresses.resize(streams.addresses());
}

BenchResult BenchRun::Run() {
  start_ = BenchClock::now();
  BenchClock::time_point now = start_;
  BenchClock::time_point look = start_ + kTick;
  while (true) {
    if (now >= look) {
      look = now + kTick;
      if (!result_.interrupted && interrupt_.Seen()) {
        result_.interrupted = true;
        streams_.CancelAll();
      }
    }
    SendDue(now);
    if (streams_.in_flight() == 0 && ArrivalsOver()) break;
    BenchClock::time_point wake = look;
    if (!ArrivalsOver() && load_->NextAtS() < SecondsAt(look)) {
      wake = start_ + std::chrono::duration_cast<BenchClock::duration>(
                          std::chrono::duration<double>(load_->NextAtS()));
    }
    now = streams_.Step(wake, *this);
  }
  // Else it is the time of the last end.
  if (result_.wall_s == 0) result_.wall_s = SecondsAt(now);
  return std::move(result_);
}

double BenchRun::SecondsAt(BenchClock::time_point time) const {
  return std::chrono::duration<double>(time - start_).count();
}

bool BenchRun::ArrivalsOver() const {
  if (result_.interrupted || result_.arrived >= plan_.requests) return true;
  const double next_at_s = load_->NextAtS();
  // A closed loop's next arrival is known when a request ends.
  if (next_at_s == Load::kNever) return streams_.in_flight() == 0;
  return next_at_s > plan_.duration_s;
}

void BenchRun::SendDue(BenchClock::time_point now) {
  while (!ArrivalsOver() && load_->NextAtS() <= SecondsAt(now)) {
    const Arrival arrival = load_->Take();
    ++result_.arrived;
    // A request's number is its arrival's, so that a drop does not change the later ones.
    const uint64_t number = next_number_++;
    if (plan_.mode == BenchMode::kOpen && streams_.in_flight() >= plan_.max_in_flight) {
      ++result_.dropped;
      continue;
    }
    FillRequest(shape_, number, &streams_.Idle()->request);
    Send(arrival, BenchClock::now());
  }
}

void BenchRun::Send(const Arrival& arrival, BenchClock::time_point now) {
  BenchStream* stream = streams_.Idle();
  stream->user = arrival.user;
  stream->address = PickAddress();
  stream->scheduled = start_ + std::chrono::duration_cast<BenchClock::duration>(
                                   std::chrono::duration<double>(arrival.at_s));
  stream->sent = now;
  const double late_ms = MillisecondsBetween(stream->scheduled, now);
  result_.max_late_ms = std::max(result_.max_late_ms, late_ms);
  if (late_ms > BenchResult::kLateMs) ++result_.late;
  ++result_.addresses[stream->address].sent;
  streams_.Start(stream);
}

uint32_t BenchRun::PickAddress() {
  const auto addresses = static_cast<uint32_t>(streams_.addresses());
  const uint32_t first = next_address_++ % addresses;
  if (!plan_.least_in_flight) return first;
  // Ties go round.
  uint32_t best = first;
  for (uint32_t i = 1; i < addresses; ++i) {
    const uint32_t other = (first + i) % addresses;
    if (streams_.in_flight(other) < streams_.in_flight(best)) best = other;
  }
  return best;
}

void BenchRun::OnTokens(const BenchStream& stream, uint32_t tokens, BenchClock::time_point before) {
  BenchCounts& counts = result_.addresses[stream.address];
  counts.tokens += tokens;
  ++counts.messages;
  if (stream.messages == 1) {
    counts.first_token_ms.Add(MillisecondsBetween(stream.scheduled, stream.last));
  } else {
    // k tokens after a gap of g ms are k samples of g / k: what a reader sees on average.
    counts.gap_ms.Add(MillisecondsBetween(before, stream.last) / tokens, tokens);
  }
  result_.over_time.Add(SecondsAt(stream.last), tokens);
}

void BenchRun::OnEnd(const BenchStream& stream, const grpc::Status& status,
                     BenchClock::time_point now) {
  BenchCounts& counts = result_.addresses[stream.address];
  result_.wall_s = SecondsAt(now);
  load_->Ended(stream.user, result_.wall_s);
  if (status.ok()) {
    ++counts.completed;
    counts.request_ms.Add(MillisecondsBetween(stream.scheduled, now));
    if (Good(stream)) ++counts.good;
  } else if (result_.interrupted && status.error_code() == grpc::StatusCode::CANCELLED) {
    ++counts.cancelled;
  } else {
    ++counts.failed;
    ++counts.errors[status.error_code()];
    if (stream.tokens == 0) counts.refusal_ms.Add(MillisecondsBetween(stream.sent, now));
    if (counts.first_error.empty()) counts.first_error = ErrorText(status);
  }
}

bool BenchRun::Good(const BenchStream& stream) const {
  if (stream.tokens == 0) return false;
  const double ttft_ms = MillisecondsBetween(stream.scheduled, stream.first);
  if (plan_.slo.ttft_ms && ttft_ms > *plan_.slo.ttft_ms) return false;
  if (!plan_.slo.gap_ms || stream.tokens == 1) return true;
  const double gap_ms =
      MillisecondsBetween(stream.first, stream.last) / static_cast<double>(stream.tokens - 1);
  return gap_ms <= *plan_.slo.gap_ms;
}

}  // namespace pergola
