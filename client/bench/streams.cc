#include "client/bench/streams.h"

#include "base/check.h"
#include "base/status.h"
#include "client/channel.h"
#include "client/error_text.h"

namespace pergola {
namespace {

constexpr std::chrono::seconds kModelInfoTimeout{10};
// Soon enough for a person who pressed Ctrl-C.
constexpr std::chrono::milliseconds kInterruptTick{50};

// What a deadline in steady time is for gRPC, which takes the time of day.
std::chrono::system_clock::time_point TimeOfDay(BenchClock::time_point time) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(time - BenchClock::now());
}

}  // namespace

BenchStreams::BenchStreams(const std::vector<std::string>& addresses, uint32_t timeout_ms)
    : timeout_(timeout_ms) {
  for (const std::string& address : addresses) {
    connections_.push_back({v1::Generation::NewStub(Dial(address)), 0});
  }
}

BenchStreams::~BenchStreams() {
  CancelAll();
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  // Each running stream has one operation in the queue, which comes because the call is cancelled.
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::StatusOr<v1::ModelInfoResponse> BenchStreams::ModelInfo(size_t address,
                                                              BenchInterrupt& interrupt) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kModelInfoTimeout);
  v1::ModelInfoResponse info;
  grpc::Status status;
  const auto call =
      connections_[address].stub->AsyncModelInfo(&context, v1::ModelInfoRequest(), &queue_);
  call->Finish(&info, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  while (queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kInterruptTick) ==
         grpc::CompletionQueue::TIMEOUT) {
    if (interrupt.Seen()) context.TryCancel();
  }
  RETURN_IF_ERROR(ToAbslStatus(status));
  return info;
}

BenchStream* BenchStreams::Idle() {
  if (idle_.empty()) {
    streams_.push_back(std::make_unique<BenchStream>());
    idle_.push_back(streams_.back().get());
  }
  return idle_.back();
}

void BenchStreams::Start(BenchStream* stream) {
  PERGOLA_CHECK_MSG(!idle_.empty() && idle_.back() == stream, "Start takes what Idle gave last");
  idle_.pop_back();
  ++in_flight_;
  ++connections_[stream->address].in_flight;
  stream->tokens = 0;
  stream->messages = 0;
  stream->reader_.reset();  // lies in the memory of the old call, which the context holds
  stream->context_.emplace();
  stream->context_->set_deadline(std::chrono::system_clock::now() + timeout_);
  stream->state_ = BenchStream::State::kStarting;
  stream->reader_ = connections_[stream->address].stub->PrepareAsyncGenerate(
      &*stream->context_, stream->request, &queue_);
  stream->reader_->StartCall(stream);
}

BenchClock::time_point BenchStreams::Step(BenchClock::time_point deadline,
                                          BenchStreamEvents& events) {
  void* tag = nullptr;
  bool ok = false;
  const grpc::CompletionQueue::NextStatus next = queue_.AsyncNext(&tag, &ok, TimeOfDay(deadline));
  const BenchClock::time_point now = BenchClock::now();
  if (next == grpc::CompletionQueue::GOT_EVENT) {
    Advance(static_cast<BenchStream*>(tag), ok, now, events);
  }
  return now;
}

void BenchStreams::Advance(BenchStream* stream, bool ok, BenchClock::time_point now,
                           BenchStreamEvents& events) {
  using State = BenchStream::State;
  if (stream->state_ == State::kFinishing) {
    stream->state_ = State::kIdle;
    --in_flight_;
    --connections_[stream->address].in_flight;
    events.OnEnd(*stream, stream->status_, now);
    idle_.push_back(stream);
    return;
  }
  if (!ok) {
    stream->state_ = State::kFinishing;
    stream->reader_->Finish(&stream->status_, stream);
    return;
  }
  if (stream->state_ == State::kReading && !stream->message_.ids().empty()) {
    const auto tokens = static_cast<uint32_t>(stream->message_.ids_size());
    const BenchClock::time_point before = stream->last;
    if (stream->tokens == 0) stream->first = now;
    stream->tokens += tokens;
    ++stream->messages;
    stream->last = now;
    events.OnTokens(*stream, tokens, before);
  }
  stream->state_ = State::kReading;
  stream->reader_->Read(&stream->message_, stream);
}

void BenchStreams::CancelAll() {
  for (const auto& stream : streams_) {
    if (stream->state_ != BenchStream::State::kIdle) stream->context_->TryCancel();
  }
}

}  // namespace pergola
