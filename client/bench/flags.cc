#include "client/bench/flags.h"

#include <utility>

#include "absl/strings/str_split.h"
#include "base/cli/number_option.h"
#include "base/status.h"

namespace pergola {
namespace {

// Of streams, users and requests in flight: the server's own bounds are far below, and a request
// costs this program a few kilobytes.
constexpr uint32_t kMaxInFlight = 16384;
constexpr uint32_t kDefaultInFlight = 1024;
constexpr uint32_t kMaxTokens = 1 << 24;
constexpr uint32_t kMaxRequests = 100'000'000;
constexpr float kMaxRate = 100000;
constexpr float kMaxSeconds = 86400;
constexpr float kMaxSloMs = 86400000;
constexpr uint32_t kMaxBatch = 4096;
constexpr uint32_t kMaxRepeats = 1000;
constexpr size_t kMaxContexts = 64;
constexpr size_t kMaxAddresses = 64;
constexpr NumberLimits<float> kThinkSeconds{0, 3600};

absl::Status Wrong(const std::string& what, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", limit));
}

// A flag, whether it was given, and the one flag (of a mode) without which it means nothing.
struct Dependent {
  const char* name;
  bool given;
  const char* needs;
  bool satisfied;
};

absl::Status CheckModes(const BenchFlags& flags) {
  const std::pair<const char*, bool> modes[] = {{"--streams", flags.streams.has_value()},
                                                {"--rate", flags.rate.has_value()},
                                                {"--users", flags.users.has_value()},
                                                {"--sweep", flags.sweep}};
  const char* first = nullptr;
  for (const auto& [name, given] : modes) {
    if (!given) continue;
    if (first != nullptr) return Wrong(name, absl::StrCat("not together with ", first));
    first = name;
  }
  return absl::OkStatus();
}

absl::Status CheckTogether(const BenchFlags& flags) {
  RETURN_IF_ERROR(CheckModes(flags));
  const bool open = flags.rate.has_value();
  for (const Dependent& flag :
       {Dependent{"--burst", flags.burst.has_value(), "--rate", open},
        Dependent{"--max-in-flight", flags.max_in_flight.has_value(), "--rate", open},
        Dependent{"--think-s", !flags.think_s.empty(), "--users", flags.users.has_value()},
        Dependent{"--sweep-contexts", !flags.sweep_contexts.empty(), "--sweep", flags.sweep},
        Dependent{"--sweep-max-batch", flags.sweep_max_batch.has_value(), "--sweep", flags.sweep},
        Dependent{"--sweep-repeats", flags.sweep_repeats.has_value(), "--sweep", flags.sweep}}) {
    if (flag.given && !flag.satisfied) return Wrong(flag.name, absl::StrCat("needs ", flag.needs));
  }
  const bool sharegpt = flags.lengths == "sharegpt";
  const std::pair<const char*, bool> lengths[] = {
      {"--prompt-tokens", flags.prompt_tokens.has_value()},
      {"--output-tokens", flags.output_tokens.has_value()}};
  for (const auto& [name, given] : lengths) {
    if (given && sharegpt) return Wrong(name, "not together with --lengths sharegpt");
  }
  const std::pair<const char*, bool> not_swept[] = {
      {"--prompt-tokens", flags.prompt_tokens.has_value()},
      {"--lengths", !flags.lengths.empty()},
      {"--requests", flags.requests.has_value()},
      {"--duration-s", flags.duration_s.has_value()},
      {"--mix", flags.mix},
      {"--balance", !flags.balance.empty()},
      {"--slo-ttft-ms", flags.slo_ttft_ms.has_value()},
      {"--slo-gap-ms", flags.slo_gap_ms.has_value()}};
  for (const auto& [name, given] : not_swept) {
    if (given && flags.sweep) return Wrong(name, "not together with --sweep");
  }
  if (flags.sweep && flags.output_tokens.value_or(2) < 2) {
    return Wrong("--output-tokens 1", "must be at least 2 with --sweep");
  }
  return absl::OkStatus();
}

absl::Status CheckChoices(const BenchFlags& flags) {
  if (!flags.lengths.empty() && flags.lengths != "fixed" && flags.lengths != "sharegpt") {
    return Wrong(absl::StrCat("--lengths ", flags.lengths), "must be fixed or sharegpt");
  }
  if (!flags.balance.empty() && flags.balance != "round-robin" &&
      flags.balance != "least-in-flight") {
    return Wrong(absl::StrCat("--balance ", flags.balance),
                 "must be round-robin or least-in-flight");
  }
  return absl::OkStatus();
}

absl::StatusOr<UserLoad::Thinking> ReadThinking(const std::string& text) {
  if (text.empty()) return UserLoad::Thinking{1, 5};
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  std::optional<float> min;
  std::optional<float> max;
  if (parts.size() == 2) {
    min = ReadNumber(parts[0], kThinkSeconds);
    max = ReadNumber(parts[1], kThinkSeconds);
  }
  if (!min || !max || *min > *max) {
    return Wrong(absl::StrCat("--think-s ", text),
                 absl::StrCat("must be MIN:MAX with seconds of ", LimitsText(kThinkSeconds),
                              ", the smaller first"));
  }
  return UserLoad::Thinking{*min, *max};
}

absl::StatusOr<std::vector<uint32_t>> ReadContexts(const std::string& text) {
  constexpr NumberLimits<uint32_t> kContexts{1, kMaxTokens};
  if (text.empty()) return std::vector<uint32_t>{128};
  std::vector<uint32_t> contexts;
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  for (const std::string& part : parts) {
    const std::optional<uint32_t> context = ReadNumber(part, kContexts);
    if (!context || contexts.size() == kMaxContexts) {
      return Wrong(absl::StrCat("--sweep-contexts ", text),
                   absl::StrCat("must be up to ", kMaxContexts, " numbers of ",
                                LimitsText(kContexts), " with commas between"));
    }
    contexts.push_back(*context);
  }
  return contexts;
}

BenchMode ModeOf(const BenchFlags& flags) {
  if (flags.sweep) return BenchMode::kSweep;
  if (flags.rate) return BenchMode::kOpen;
  return flags.users ? BenchMode::kUsers : BenchMode::kClosed;
}

uint32_t DefaultOutputTokens(BenchMode mode) {
  if (mode == BenchMode::kSweep) return 100;  // as DeepSpeed's and BLOOM's published tables
  return mode == BenchMode::kUsers ? 20 : 128;
}

void AddModeFlags(CLI::App& command, BenchFlags* flags) {
  AddNumber(command, "--streams", &flags->streams, {1, kMaxInFlight},
            "closed loop: so many streams, each sending its next request when the last one has "
            "ended (default: 1)");
  AddNumber(command, "--rate", &flags->rate, {0, kMaxRate, true},
            "open loop: so many requests a second, whatever the server does (default: closed "
            "loop)");
  AddNumber(command, "--burst", &flags->burst, {1, kMaxInFlight},
            "with --rate: requests that arrive at once, at the same mean rate (default: 1)");
  AddNumber(command, "--max-in-flight", &flags->max_in_flight, {1, kMaxInFlight},
            "with --rate: an arrival beyond so many open requests is dropped and counted "
            "(default: 1024)");
  AddNumber(command, "--users", &flags->users, {1, kMaxInFlight},
            "users who think between their requests (default: closed loop)");
  command.add_option("--think-s", flags->think_s,
                     "with --users: MIN:MAX seconds between two requests, uniform (default: 1:5)");
  command.add_flag("--sweep", flags->sweep,
                   "static batches of 1, 2, 4, ... greedy streams, prefill and decode apart "
                   "(default: closed loop)");
  command.add_option("--sweep-contexts", flags->sweep_contexts,
                     "with --sweep: prompt tokens, with commas between (default: 128)");
  AddNumber(command, "--sweep-max-batch", &flags->sweep_max_batch, {1, kMaxBatch},
            "with --sweep: largest batch (default: 512)");
  AddNumber(command, "--sweep-repeats", &flags->sweep_repeats, {1, kMaxRepeats},
            "with --sweep: runs of each batch, of which the medians are shown (default: 3)");
}

void AddRequestFlags(CLI::App& command, BenchFlags* flags) {
  AddNumber(command, "--requests", &flags->requests, {1, kMaxRequests},
            "requests in all (default: 4 times the streams or users, 100 with --rate, no limit "
            "with --duration-s)");
  AddNumber(command, "--duration-s", &flags->duration_s, {0, kMaxSeconds, true},
            "seconds after which no request is sent any more (default: no limit)");
  command.add_option("--lengths", flags->lengths,
                     "fixed, or sharegpt: log-normal lengths (default: fixed)");
  AddNumber(command, "--prompt-tokens", &flags->prompt_tokens, {1, kMaxTokens},
            "random ids per prompt (default: 128)");
  AddNumber(command, "--output-tokens", &flags->output_tokens, {1, kMaxTokens},
            "new tokens per request (default: 128; 20 with --users, 100 with --sweep)");
  command.add_flag("--mix", flags->mix,
                   "greedy, temperature, top_k, top_p and penalties by turns (default: greedy)");
}

}  // namespace

const char* BenchModeName(BenchMode mode) {
  constexpr const char* kNames[] = {"closed", "open", "users", "sweep"};
  return kNames[static_cast<int>(mode)];
}

void AddBenchFlags(CLI::App& command, BenchFlags* flags) {
  AddModeFlags(command, flags);
  AddRequestFlags(command, flags);
  command.add_option("--balance", flags->balance,
                     "of several addresses: round-robin or least-in-flight (default: round-robin)");
  AddNumber(command, "--slo-ttft-ms", &flags->slo_ttft_ms, {0, kMaxSloMs, true},
            "a good request has its first token in so many milliseconds (default: no bound)");
  AddNumber(command, "--slo-gap-ms", &flags->slo_gap_ms, {0, kMaxSloMs, true},
            "and so many between tokens on average (default: no bound)");
  AddNumber(command, "--warmup", &flags->warmup, {0, 10'000},
            "requests to each address before the measurement, one by one")
      ->capture_default_str();
  AddNumber(command, "--seed", &flags->seed, {0, UINT64_MAX},
            "of arrivals, lengths, prompts and sampling")
      ->capture_default_str();
  AddNumber(command, "--timeout-ms", &flags->timeout_ms, {1, 86'400'000},
            "milliseconds one request may take")
      ->capture_default_str();
  command.add_option("--json", flags->json,
                     "write the numbers to this file as JSON; - is standard output, where the "
                     "table then goes to standard error (default: none)");
  command.add_option("--svg", flags->svg,
                     "write plots to files whose names begin so: PREFIX-latency.svg, "
                     "PREFIX-tokens.svg, or PREFIX-sweep.svg, PREFIX-step.svg (default: none)");
}

absl::StatusOr<BenchPlan> MakeBenchPlan(const BenchFlags& flags) {
  RETURN_IF_ERROR(CheckChoices(flags));
  RETURN_IF_ERROR(CheckTogether(flags));
  BenchPlan plan;
  plan.mode = ModeOf(flags);
  plan.streams = flags.streams.value_or(1);
  plan.rate_per_s = flags.rate.value_or(0);
  plan.burst = flags.burst.value_or(1);
  plan.users = flags.users.value_or(0);
  plan.max_in_flight = flags.max_in_flight.value_or(kDefaultInFlight);
  ASSIGN_OR_RETURN(plan.thinking, ReadThinking(flags.think_s));
  plan.requests =
      plan.mode == BenchMode::kOpen ? 100 : 4 * (flags.users ? plan.users : plan.streams);
  if (flags.duration_s) {
    plan.duration_s = *flags.duration_s;
    plan.requests = UINT64_MAX;
  }
  if (flags.requests) plan.requests = *flags.requests;
  plan.sharegpt = flags.lengths == "sharegpt";
  plan.prompt_tokens = flags.prompt_tokens.value_or(128);
  plan.output_tokens = flags.output_tokens.value_or(DefaultOutputTokens(plan.mode));
  plan.mix = flags.mix;
  plan.least_in_flight = flags.balance == "least-in-flight";
  if (flags.slo_ttft_ms) plan.slo.ttft_ms = *flags.slo_ttft_ms;
  if (flags.slo_gap_ms) plan.slo.gap_ms = *flags.slo_gap_ms;
  ASSIGN_OR_RETURN(plan.sweep_contexts, ReadContexts(flags.sweep_contexts));
  plan.sweep_max_batch = flags.sweep_max_batch.value_or(512);
  plan.sweep_repeats = flags.sweep_repeats.value_or(3);
  plan.warmup = flags.warmup;
  plan.seed = flags.seed;
  plan.timeout_ms = flags.timeout_ms;
  return plan;
}

absl::StatusOr<std::vector<std::string>> SplitAddresses(const std::string& text) {
  std::vector<std::string> addresses;
  if (text.empty()) return addresses;
  addresses = absl::StrSplit(text, ',');
  if (addresses.size() > kMaxAddresses) {
    return Wrong("--connect", absl::StrCat("names ", addresses.size(), " addresses: must be 1 to ",
                                           kMaxAddresses));
  }
  return addresses;
}

}  // namespace pergola
