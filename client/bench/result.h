// What a benchmark has measured. Times are in milliseconds or seconds, as their names say.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/bench/flags.h"
#include "client/bench/statistics.h"

namespace pergola {

// Of the requests to one address, or of all.
struct BenchCounts {
  std::string address;
  uint64_t sent = 0;       // completed, failed, cancelled
  uint64_t completed = 0;  // ended with OK
  uint64_t failed = 0;
  uint64_t cancelled = 0;          // by us, because the run was interrupted
  uint64_t good = 0;               // completed within every bound of the plan's SLO
  uint64_t tokens = 0;             // those of failed requests included
  uint64_t messages = 0;           // that carried tokens
  std::map<int, uint64_t> errors;  // failed requests by gRPC status code
  std::string first_error;         // empty if none failed
  // From the scheduled arrival, so that a client or server that falls behind hides nothing.
  Samples first_token_ms;
  Samples request_ms;  // to the end of the stream, completed ones only
  Samples refusal_ms;  // from sending to the end of a request that failed without a token
  // Per token after a request's first message: its share of the gap before its message.
  Samples gap_ms;

  void Add(const BenchCounts& other);
};

// How the tokens came in over time.
struct TokensOverTime {
  static constexpr double kTickS = 0.1;
  std::vector<uint64_t> ticks;  // tokens of each kTickS since the start

  void Add(double at_s, uint64_t tokens);
  // Pairs (middle of a span in s, tokens/s in it), at most `points` spans of equal length.
  std::vector<std::pair<double, double>> Rates(size_t points) const;
};

struct BenchResult {
  BenchPlan plan;
  std::string model;
  std::vector<BenchCounts> addresses;
  uint64_t arrived = 0;  // scheduled and due: sent or dropped
  uint64_t dropped = 0;  // not sent, for max_in_flight requests were open
  uint64_t late = 0;     // sent more than kLateMs after their arrival: the client fell behind
  double max_late_ms = 0;
  double wall_s = 0;  // start to the last end
  TokensOverTime over_time;
  bool interrupted = false;

  static constexpr double kLateMs = 10;

  BenchCounts All() const;
};

// One static batch.
struct SweepPoint {
  uint32_t context = 0;  // prompt tokens of each stream
  uint32_t batch = 0;
  uint32_t output_tokens = 0;
  // Why there are no numbers, or why they are not those of a static batch; empty: they are.
  std::string remark;
  bool fits = false;  // ran, all streams at once

  // Medians over the repeats; 0: not measured.
  double first_token_ms = 0;  // start of the batch to a stream's first token, its median
  double prefill_ms = 0;      // start of the batch to the last stream's first token
  double step_ms = 0;         // between two tokens of a stream, while all streams decode
  double tokens_per_s = 0;    // all new tokens over the whole time

  double prefill_ms_per_token() const { return prefill_ms / (1.0 * context * batch); }
  double ms_per_token() const { return step_ms / batch; }
};

struct SweepResult {
  BenchPlan plan;
  std::string address;
  std::string model;
  double load_s = 0;               // from the first sign of loading to serving; 0: not known
  std::vector<SweepPoint> points;  // by context, then by batch
  bool interrupted = false;
};

// The largest batch of `context` that fits; 0: none.
uint32_t LargestBatch(const SweepResult& result, uint32_t context);

}  // namespace pergola
