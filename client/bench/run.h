// Runs a load against the servers and measures it. One thread.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "client/bench/interrupt.h"
#include "client/bench/requests.h"
#include "client/bench/result.h"
#include "client/bench/streams.h"

namespace pergola {

// Sends plan.warmup requests of `shape` to each address, one by one. The error of the first that
// fails; CANCELLED if interrupted.
absl::Status WarmUp(const BenchPlan& plan, const RequestShape& shape, BenchStreams& streams,
                    BenchInterrupt& interrupt);

// Which requests a plan of mode kClosed, kOpen or kUsers sends, and when.
std::unique_ptr<Load> MakeLoad(const BenchPlan& plan);

class BenchRun final : private BenchStreamEvents {
 public:
  // All borrowed; `streams` is idle.
  BenchRun(const BenchPlan& plan, const RequestShape& shape, BenchStreams& streams,
           BenchInterrupt& interrupt);

  // Returns when all requests have ended, or have been cancelled after an interruption. The model
  // and the addresses' names are left empty.
  BenchResult Run();

 private:
  void OnTokens(const BenchStream& stream, uint32_t tokens, BenchClock::time_point before) override;
  void OnEnd(const BenchStream& stream, const grpc::Status& status,
             BenchClock::time_point now) override;

  double SecondsAt(BenchClock::time_point time) const;
  bool ArrivalsOver() const;
  void SendDue(BenchClock::time_point now);
  void Send(const Arrival& arrival, BenchClock::time_point now);
  uint32_t PickAddress();
  bool Good(const BenchStream& stream) const;

  const BenchPlan& plan_;
  const RequestShape& shape_;
  BenchStreams& streams_;
  BenchInterrupt& interrupt_;
  const std::unique_ptr<Load> load_;
  BenchClock::time_point start_{};
  uint64_t next_number_ = 0;
  uint32_t next_address_ = 0;
  BenchResult result_;
};

}  // namespace pergola
