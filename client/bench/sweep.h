// Static batches: so many equal greedy streams at once, none before and none after. One thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/bench/interrupt.h"
#include "client/bench/requests.h"
#include "client/bench/result.h"
#include "client/bench/streams.h"
#include "pergola/v1/admin.pb.h"

namespace pergola {

// What bounds a batch, if the server's status is known.
struct SweepLimits {
  uint32_t context_length = 0;
  std::optional<uint32_t> slots;
  uint64_t blocks = 0;  // only with slots
  uint32_t block_tokens = 1;
  double load_s = 0;  // of the slowest group; 0: not known
};

// Sums over the groups that serve.
void AddStatus(const v1::StatusResponse& status, SweepLimits* limits);

// Why a batch cannot run at once; empty if nothing known speaks against it. Pure.
std::string WhyNot(const SweepLimits& limits, const SweepPoint& point);

// 1, 2, 4, ... up to `largest`, which is the last one also if it is no power of two. Pure.
std::vector<uint32_t> SweepBatches(uint32_t largest);

class BenchSweep final : private BenchStreamEvents {
 public:
  // All borrowed; `streams` is idle and has one address.
  BenchSweep(const BenchPlan& plan, RequestShape shape, BenchStreams& streams,
             BenchInterrupt& interrupt);

  // Each context with rising batches, until one does not fit. Model and address are left empty.
  SweepResult Run(const SweepLimits& limits);

 private:
  void OnTokens(const BenchStream& stream, uint32_t tokens, BenchClock::time_point before) override;
  void OnEnd(const BenchStream& stream, const grpc::Status& status,
             BenchClock::time_point now) override;

  // False if interrupted.
  bool Measure(SweepPoint* point);
  void RunOnce(const SweepPoint& point);
  void BeginDecoding();
  void EndDecoding();

  struct Member {
    const BenchStream* stream = nullptr;
    // When the last stream had begun.
    uint64_t tokens = 0;
    BenchClock::time_point last{};
  };
  // The batch that runs, or ran last.
  struct Batch {
    BenchClock::time_point start{};
    uint32_t output_tokens = 0;
    std::vector<Member> members;
    uint32_t begun = 0;
    bool any_done = false;  // a stream has all its tokens or has failed
    bool decoding = false;  // all have begun and none is done
    bool at_once = false;   // was decoding at some time
    Samples first_token_ms;
    double prefill_ms = 0;
    double decode_ms = 0;  // sum over the streams of the time that decode_tokens took
    uint64_t decode_tokens = 0;
    uint64_t tokens = 0;
    double wall_ms = 0;
    uint32_t failed = 0;
    std::string first_error;
  };

  const BenchPlan& plan_;
  RequestShape shape_;
  BenchStreams& streams_;
  BenchInterrupt& interrupt_;
  uint64_t next_number_ = 0;
  bool interrupted_ = false;
  Batch batch_;
};

}  // namespace pergola
