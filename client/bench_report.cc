#include "client/bench_report.h"

#include "absl/strings/str_format.h"
#include "client/statistics.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

double TokensPerSecond(const BenchResult& result) {
  return result.wall_s > 0 ? static_cast<double>(result.tokens) / result.wall_s : 0.0;
}

}  // namespace

void AddGap(double gap_ms, int tokens, std::vector<double>& samples) {
  if (tokens > 0) samples.insert(samples.end(), tokens, gap_ms / tokens);
}

std::string BenchText(BenchResult& result) {
  std::string text = absl::StrFormat(
      "%s at %s: %d streams, %d requests of %d prompt and %d output tokens\n", result.model,
      result.address, result.streams, result.requests, result.prompt_tokens, result.output_tokens);
  absl::StrAppendFormat(&text, "%-22s %12s %12s\n", "", "p50", "p99");
  absl::StrAppendFormat(&text, "%-22s %9.2f ms %9.2f ms\n", "time to first token",
                        Percentile(result.first_token_ms, 50),
                        Percentile(result.first_token_ms, 99));
  absl::StrAppendFormat(&text, "%-22s %9.2f ms %9.2f ms\n", "between tokens",
                        Percentile(result.inter_token_ms, 50),
                        Percentile(result.inter_token_ms, 99));
  absl::StrAppendFormat(&text, "%-22s %9.2f tokens/s (%d tokens in %.2f s)\n", "throughput",
                        TokensPerSecond(result), result.tokens, result.wall_s);
  if (result.failed > 0) {
    absl::StrAppendFormat(&text, "%d of %d requests failed, the first with %s\n", result.failed,
                          result.requests, result.first_error);
  }
  return text;
}

std::string BenchJson(BenchResult& result) {
  const nlohmann::ordered_json json = {
      {"address", result.address},
      {"model", result.model},
      {"streams", result.streams},
      {"requests", result.requests},
      {"prompt_tokens", result.prompt_tokens},
      {"output_tokens", result.output_tokens},
      {"failed", result.failed},
      {"first_error", result.first_error},
      {"wall_s", result.wall_s},
      {"tokens", result.tokens},
      {"tokens_per_s", TokensPerSecond(result)},
      {"ttft_p50_ms", Percentile(result.first_token_ms, 50)},
      {"ttft_p99_ms", Percentile(result.first_token_ms, 99)},
      {"inter_token_p50_ms", Percentile(result.inter_token_ms, 50)},
      {"inter_token_p99_ms", Percentile(result.inter_token_ms, 99)}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace pergola
