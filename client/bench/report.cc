#include "client/bench/report.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/error_text.h"

namespace pergola {
namespace {

double Ratio(double dividend, double divisor) {
  return divisor > 0 ? dividend / divisor : 0.0;
}

// What was asked, after "MODEL at ADDRESSES: ".
std::string LoadText(const BenchPlan& plan) {
  switch (plan.mode) {
    case BenchMode::kOpen:
      return absl::StrFormat("%g requests/s in bursts of %d, at most %d in flight", plan.rate_per_s,
                             plan.burst, plan.max_in_flight);
    case BenchMode::kUsers:
      return absl::StrFormat("%d users thinking %g to %g s", plan.users, plan.thinking.min_s,
                             plan.thinking.max_s);
    default:
      return absl::StrFormat("%d streams", plan.streams);
  }
}

std::string LengthsText(const BenchPlan& plan) {
  if (plan.sharegpt) return "ShareGPT-like lengths";
  return absl::StrFormat("%d prompt and %d output tokens", plan.prompt_tokens, plan.output_tokens);
}

void AddPercentiles(std::string* text, const char* name, Samples& samples) {
  absl::StrAppendFormat(text, "%-24s", name);
  for (const double percent : {50.0, 90.0, 99.0, 99.9}) {
    absl::StrAppendFormat(text, " %9.2f ms", samples.Percentile(percent));
  }
  *text += "\n";
}

void AddGoodput(std::string* text, const BenchResult& result, const BenchCounts& all) {
  const BenchSlo& slo = result.plan.slo;
  if (!slo.ttft_ms && !slo.gap_ms) return;
  std::vector<std::string> bounds;
  if (slo.ttft_ms) bounds.push_back(absl::StrFormat("first token within %g ms", *slo.ttft_ms));
  if (slo.gap_ms) bounds.push_back(absl::StrFormat("mean gap within %g ms", *slo.gap_ms));
  const uint64_t counted = result.arrived - all.cancelled;
  absl::StrAppendFormat(text, "%-24s %9.1f %% of %d requests, %.2f requests/s (%s)\n", "goodput",
                        100 * Ratio(all.good, counted), counted, Ratio(all.good, result.wall_s),
                        absl::StrJoin(bounds, ", "));
}

void AddTroubles(std::string* text, const BenchResult& result, const BenchCounts& all) {
  if (result.dropped > 0) {
    absl::StrAppendFormat(text, "%d of %d arrivals dropped: %d requests were in flight\n",
                          result.dropped, result.arrived, result.plan.max_in_flight);
  }
  if (result.late > 0) {
    absl::StrAppendFormat(text,
                          "%d requests sent more than %g ms late, by up to %.1f ms: this program "
                          "fell behind\n",
                          result.late, BenchResult::kLateMs, result.max_late_ms);
  }
  if (all.gap_ms.left_out() > 0) {
    absl::StrAppendFormat(text, "%d gaps between tokens are left out of the percentiles\n",
                          all.gap_ms.left_out());
  }
  if (all.failed > 0) {
    absl::StrAppendFormat(text, "%d of %d requests failed, the first with %s\n", all.failed,
                          all.sent, all.first_error);
    for (const auto& [code, number] : all.errors) {
      absl::StrAppendFormat(text, "  %s: %d\n", CodeName(code), number);
    }
  }
  if (result.interrupted) {
    absl::StrAppendFormat(text, "interrupted: %d requests cancelled\n", all.cancelled);
  }
}

std::string AddressList(const BenchResult& result) {
  std::vector<std::string> names;
  for (const BenchCounts& counts : result.addresses) names.push_back(counts.address);
  return absl::StrJoin(names, ",");
}

}  // namespace

std::string BenchText(const BenchResult& result) {
  BenchCounts all = result.All();
  std::string text =
      absl::StrFormat("%s at %s: %s, %d requests of %s%s\n", result.model, AddressList(result),
                      LoadText(result.plan), result.arrived, LengthsText(result.plan),
                      result.plan.mix ? ", mixed parameters" : "");
  absl::StrAppendFormat(&text, "%-24s %12s %12s %12s %12s\n", "", "p50", "p90", "p99", "p99.9");
  AddPercentiles(&text, "time to first token", all.first_token_ms);
  AddPercentiles(&text, "between tokens", all.gap_ms);
  AddPercentiles(&text, "whole request", all.request_ms);
  if (all.refusal_ms.count() > 0) AddPercentiles(&text, "refusal", all.refusal_ms);
  absl::StrAppendFormat(&text, "%-24s %9.2f tokens/s (%d tokens in %.2f s)\n", "throughput",
                        Ratio(all.tokens, result.wall_s), all.tokens, result.wall_s);
  absl::StrAppendFormat(&text, "%-24s %9.2f messages/s, %.2f tokens per message\n", "",
                        Ratio(all.messages, result.wall_s), Ratio(all.tokens, all.messages));
  absl::StrAppendFormat(&text, "%-24s %9.2f requests/s completed\n", "",
                        Ratio(all.completed, result.wall_s));
  AddGoodput(&text, result, all);
  if (result.addresses.size() > 1) {
    absl::StrAppendFormat(&text, "%-24s %9s %9s %12s %12s %12s\n", "address", "requests", "failed",
                          "tokens/s", "ttft p50", "gap p50");
    for (const BenchCounts& counts : result.addresses) {
      BenchCounts own = counts;
      absl::StrAppendFormat(&text, "%-24s %9d %9d %12.2f %9.2f ms %9.2f ms\n", own.address,
                            own.sent, own.failed, Ratio(own.tokens, result.wall_s),
                            own.first_token_ms.Median(), own.gap_ms.Median());
    }
  }
  AddTroubles(&text, result, all);
  return text;
}

std::string SweepText(const SweepResult& result) {
  const BenchPlan& plan = result.plan;
  std::string text = absl::StrFormat(
      "%s at %s: static batches of greedy streams, %d output tokens, medians of %d\n", result.model,
      result.address, plan.output_tokens, plan.sweep_repeats);
  if (result.load_s > 0) absl::StrAppendFormat(&text, "loaded in %.2f s\n", result.load_s);
  absl::StrAppendFormat(&text, "%8s %6s %14s %12s %15s %10s %10s %10s\n", "context", "batch",
                        "first token ms", "prefill ms", "prefill ms/tok", "step ms", "ms/token",
                        "tokens/s");
  for (const SweepPoint& point : result.points) {
    absl::StrAppendFormat(&text, "%8d %6d", point.context, point.batch);
    if (point.tokens_per_s > 0) {
      absl::StrAppendFormat(&text, " %14.2f %12.2f %15.4f %10.3f %10.4f %10.1f",
                            point.first_token_ms, point.prefill_ms, point.prefill_ms_per_token(),
                            point.step_ms, point.ms_per_token(), point.tokens_per_s);
    }
    if (!point.remark.empty()) text += " " + point.remark;
    text += "\n";
  }
  for (const uint32_t context : plan.sweep_contexts) {
    const uint32_t largest = LargestBatch(result, context);
    absl::StrAppendFormat(&text, "largest batch that fits at context %d: %s\n", context,
                          largest > 0 ? absl::StrCat(largest) : "none");
  }
  if (result.interrupted) text += "interrupted\n";
  return text;
}

std::vector<NamedPlot> BenchPlots(const BenchResult& result) {
  // As many as the page has room for.
  constexpr size_t kPoints = 400;
  BenchCounts all = result.All();
  const std::string what = absl::StrCat(result.model, ", ", LoadText(result.plan));
  Plot latency;
  latency.title = "Latency: " + what;
  latency.x_label = "ms (logarithmic)";
  latency.y_label = "% at most so long";
  latency.log_x = true;
  latency.lines = {{"time to first token", all.first_token_ms.Distribution(kPoints)},
                   {"between tokens", all.gap_ms.Distribution(kPoints)},
                   {"whole request", all.request_ms.Distribution(kPoints)}};
  Plot tokens;
  tokens.title = "Throughput: " + what;
  tokens.x_label = "s since the start";
  tokens.y_label = "tokens/s";
  tokens.lines = {{"new tokens", result.over_time.Rates(kPoints / 4)}};
  return {{"latency", latency}, {"tokens", tokens}};
}

std::vector<NamedPlot> SweepPlots(const SweepResult& result) {
  Plot plot;
  plot.title = absl::StrFormat("Decode: %s, static batches", result.model);
  plot.x_label = "batch (logarithmic)";
  plot.y_label = "ms per token (step time / batch)";
  plot.log_x = true;
  plot.log_base = 2;
  plot.dots = true;
  Plot step = plot;
  step.y_label = "ms between tokens of a stream";
  for (const uint32_t context : result.plan.sweep_contexts) {
    PlotLine each{absl::StrFormat("context %d", context), {}};
    PlotLine steps = each;
    for (const SweepPoint& point : result.points) {
      if (point.context != context || !point.fits || point.step_ms <= 0) continue;
      each.points.emplace_back(point.batch, point.ms_per_token());
      steps.points.emplace_back(point.batch, point.step_ms);
    }
    plot.lines.push_back(each);
    step.lines.push_back(steps);
  }
  return {{"sweep", plot}, {"step", step}};
}

}  // namespace pergola
