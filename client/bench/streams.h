// Many Generate streams on one thread: the caller's, over one completion queue. No lock, no thread
// per stream; requests, messages and streams are used again, so that a token costs no memory.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench/interrupt.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/support/async_stream.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {

using BenchClock = std::chrono::steady_clock;

inline double MillisecondsBetween(BenchClock::time_point from, BenchClock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

class BenchStream {
 public:
  // Set before Start.
  v1::GenerateRequest request;
  uint32_t address = 0;                // index
  uint32_t user = 0;                   // of the load
  BenchClock::time_point scheduled{};  // latencies count from here
  BenchClock::time_point sent{};

  // Since Start: only messages with tokens.
  uint64_t tokens = 0;
  uint64_t messages = 0;
  BenchClock::time_point first{};  // the first message; only if there are tokens
  BenchClock::time_point last{};   // the last one so far

 private:
  friend class BenchStreams;
  enum class State { kIdle, kStarting, kReading, kFinishing };

  std::optional<grpc::ClientContext> context_;  // of this call
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader_;
  v1::GenerateResponse message_;
  grpc::Status status_;
  State state_ = State::kIdle;
};

// What a stream tells its owner; both are called by Step.
class BenchStreamEvents {
 public:
  virtual ~BenchStreamEvents() = default;
  // A message with `tokens` > 0 new ids came at stream.last; the one before it came at `before`,
  // which means nothing if this is the first.
  virtual void OnTokens(const BenchStream& stream, uint32_t tokens,
                        BenchClock::time_point before) = 0;
  // The stream has ended; it is idle again when this returns.
  virtual void OnEnd(const BenchStream& stream, const grpc::Status& status,
                     BenchClock::time_point now) = 0;
};

class BenchStreams {
 public:
  // Each address has a connection of its own.
  BenchStreams(const std::vector<std::string>& addresses, uint32_t timeout_ms);
  // Cancels what runs and waits for its end.
  ~BenchStreams();

  size_t addresses() const { return connections_.size(); }
  size_t in_flight() const { return in_flight_; }
  size_t in_flight(size_t address) const { return connections_[address].in_flight; }

  // What `address` serves. Waits up to 10 s; CANCELLED if interrupted. With no stream running.
  absl::StatusOr<v1::ModelInfoResponse> ModelInfo(size_t address, BenchInterrupt& interrupt);

  // A stream that does not run, to be filled in. Stays valid as long as this object.
  BenchStream* Idle();
  void Start(BenchStream* stream);
  // Waits until `deadline` for something to happen on one stream, and handles it. Returns the time
  // after the wait.
  BenchClock::time_point Step(BenchClock::time_point deadline, BenchStreamEvents& events);
  // Ends all streams with CANCELLED; their ends come by Step.
  void CancelAll();

 private:
  struct Connection {
    std::unique_ptr<v1::Generation::Stub> stub;
    size_t in_flight = 0;
  };

  void Advance(BenchStream* stream, bool ok, BenchClock::time_point now, BenchStreamEvents& events);

  const std::chrono::milliseconds timeout_;
  grpc::CompletionQueue queue_;
  std::vector<Connection> connections_;
  std::vector<std::unique_ptr<BenchStream>> streams_;
  std::vector<BenchStream*> idle_;
  size_t in_flight_ = 0;
};

}  // namespace pergola
