// The flags of `pergola bench`, and the plan they make once what contradicts is refused.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/bench/load.h"

namespace pergola {

// What is unset was not given.
struct BenchFlags {
  std::optional<uint32_t> streams;
  std::optional<float> rate;
  std::optional<uint32_t> users;
  bool sweep = false;

  std::optional<uint32_t> burst;
  std::optional<uint32_t> max_in_flight;
  std::string think_s;
  std::optional<uint32_t> requests;
  std::optional<float> duration_s;
  std::string lengths;
  std::optional<uint32_t> prompt_tokens;
  std::optional<uint32_t> output_tokens;
  bool mix = false;
  std::string balance;
  std::optional<float> slo_ttft_ms;
  std::optional<float> slo_gap_ms;
  std::string sweep_contexts;
  std::optional<uint32_t> sweep_max_batch;
  std::optional<uint32_t> sweep_repeats;

  uint32_t warmup = 1;
  uint64_t seed = 1;
  uint32_t timeout_ms = 600000;
  std::string json;  // a file, or "-"
  std::string svg;   // what the names of the plots begin with
};

enum class BenchMode { kClosed, kOpen, kUsers, kSweep };
// "closed", "open", "users" or "sweep".
const char* BenchModeName(BenchMode mode);

// Latency bounds that a request must keep to count as good; what is unset bounds nothing.
struct BenchSlo {
  std::optional<double> ttft_ms;
  std::optional<double> gap_ms;
};

// What is to be done, every default filled in.
struct BenchPlan {
  BenchMode mode = BenchMode::kClosed;
  uint32_t streams = 1;   // closed: at once
  double rate_per_s = 0;  // open
  uint32_t burst = 1;
  uint32_t max_in_flight = 0;
  uint32_t users = 0;
  UserLoad::Thinking thinking;
  uint64_t requests = 0;             // most arrivals; UINT64_MAX: until duration_s
  double duration_s = Load::kNever;  // no arrivals after it
  bool sharegpt = false;
  uint32_t prompt_tokens = 128;
  uint32_t output_tokens = 128;
  bool mix = false;
  bool least_in_flight = false;  // else round-robin
  BenchSlo slo;
  std::vector<uint32_t> sweep_contexts;
  uint32_t sweep_max_batch = 0;
  uint32_t sweep_repeats = 1;
  uint32_t warmup = 1;
  uint64_t seed = 1;
  uint32_t timeout_ms = 0;
};

// Declares them below `command`; `flags` must outlive the parsing.
void AddBenchFlags(CLI::App& command, BenchFlags* flags);

// INVALID_ARGUMENT in one line naming the flags that contradict each other, or the value that is
// wrong with its limits.
absl::StatusOr<BenchPlan> MakeBenchPlan(const BenchFlags& flags);

// "a:1,b:2" as its parts; an empty text has none. INVALID_ARGUMENT if there are more than 64.
absl::StatusOr<std::vector<std::string>> SplitAddresses(const std::string& text);

}  // namespace pergola
