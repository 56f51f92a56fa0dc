// The JSON of bench_report.h. docs/bench.md lists the names: they are kept.
#include "nlohmann/json.hpp"
#include "client/bench/report.h"
#include "client/error_text.h"

namespace pergola {
namespace {

using Json = nlohmann::ordered_json;

double Ratio(double dividend, double divisor) {
  return divisor > 0 ? dividend / divisor : 0.0;
}

std::string Text(const Json& json) {
  // What a server says of itself need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void AddPercentiles(Json& json, const std::string& name, Samples samples) {
  json[name + "_p50_ms"] = samples.Percentile(50);
  json[name + "_p90_ms"] = samples.Percentile(90);
  json[name + "_p99_ms"] = samples.Percentile(99);
  json[name + "_p999_ms"] = samples.Percentile(99.9);
}

void AddCounts(Json& json, const BenchCounts& counts, double wall_s) {
  json["sent"] = counts.sent;
  json["completed"] = counts.completed;
  json["failed"] = counts.failed;
  json["cancelled"] = counts.cancelled;
  json["first_error"] = counts.first_error;
  Json errors = Json::object();
  for (const auto& [code, number] : counts.errors) errors[CodeName(code)] = number;
  json["errors"] = errors;
  json["tokens"] = counts.tokens;
  json["tokens_per_s"] = Ratio(counts.tokens, wall_s);
  json["messages"] = counts.messages;
  json["messages_per_s"] = Ratio(counts.messages, wall_s);
  json["tokens_per_message"] = Ratio(counts.tokens, counts.messages);
  AddPercentiles(json, "ttft", counts.first_token_ms);
  AddPercentiles(json, "inter_token", counts.gap_ms);
  AddPercentiles(json, "request", counts.request_ms);
  AddPercentiles(json, "refusal", counts.refusal_ms);
}

Json Or(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

// What was asked; what the mode does not have is left out.
void AddPlan(Json& json, const BenchPlan& plan) {
  json["mode"] = BenchModeName(plan.mode);
  json["seed"] = plan.seed;
  if (plan.mode == BenchMode::kClosed) json["streams"] = plan.streams;
  if (plan.mode == BenchMode::kOpen) {
    json["rate_per_s"] = plan.rate_per_s;
    json["burst"] = plan.burst;
    json["max_in_flight"] = plan.max_in_flight;
  }
  if (plan.mode == BenchMode::kUsers) {
    json["users"] = plan.users;
    json["think_min_s"] = plan.thinking.min_s;
    json["think_max_s"] = plan.thinking.max_s;
  }
  json["lengths"] = plan.sharegpt ? "sharegpt" : "fixed";
  if (!plan.sharegpt) {
    json["prompt_tokens"] = plan.prompt_tokens;
    json["output_tokens"] = plan.output_tokens;
  }
  json["mix"] = plan.mix;
}

}  // namespace

std::string BenchJson(const BenchResult& result) {
  const BenchCounts all = result.All();
  Json json;
  std::string names;
  for (const BenchCounts& counts : result.addresses) {
    names += (names.empty() ? "" : ",") + counts.address;
  }
  json["address"] = names;
  json["model"] = result.model;
  AddPlan(json, result.plan);
  json["requests"] = result.arrived;
  json["dropped"] = result.dropped;
  json["late"] = result.late;
  json["max_late_ms"] = result.max_late_ms;
  json["interrupted"] = result.interrupted;
  json["wall_s"] = result.wall_s;
  AddCounts(json, all, result.wall_s);
  json["requests_per_s"] = Ratio(all.completed, result.wall_s);
  json["gaps_left_out"] = all.gap_ms.left_out();
  json["slo_ttft_ms"] = Or(result.plan.slo.ttft_ms);
  json["slo_gap_ms"] = Or(result.plan.slo.gap_ms);
  json["good"] = all.good;
  json["goodput_share"] = Ratio(all.good, result.arrived - all.cancelled);
  json["goodput_per_s"] = Ratio(all.good, result.wall_s);
  json["addresses"] = Json::array();
  for (const BenchCounts& counts : result.addresses) {
    Json own = {{"address", counts.address}};
    AddCounts(own, counts, result.wall_s);
    json["addresses"].push_back(own);
  }
  json["tokens_over_time"] = Json::array();
  for (const auto& [at_s, rate] : result.over_time.Rates(300)) {
    json["tokens_over_time"].push_back({{"at_s", at_s}, {"tokens_per_s", rate}});
  }
  return Text(json);
}

std::string SweepJson(const SweepResult& result) {
  Json json = {{"address", result.address},
               {"model", result.model},
               {"mode", BenchModeName(result.plan.mode)},
               {"seed", result.plan.seed},
               {"output_tokens", result.plan.output_tokens},
               {"repeats", result.plan.sweep_repeats},
               {"interrupted", result.interrupted},
               {"load_s", result.load_s > 0 ? Json(result.load_s) : Json(nullptr)}};
  json["points"] = Json::array();
  const auto measured = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
  for (const SweepPoint& point : result.points) {
    json["points"].push_back({{"context", point.context},
                              {"batch", point.batch},
                              {"fits", point.fits},
                              {"remark", point.remark},
                              {"first_token_ms", measured(point.first_token_ms)},
                              {"prefill_ms", measured(point.prefill_ms)},
                              {"prefill_ms_per_token", measured(point.prefill_ms_per_token())},
                              {"step_ms", measured(point.step_ms)},
                              {"ms_per_token", measured(point.ms_per_token())},
                              {"tokens_per_s", measured(point.tokens_per_s)}});
  }
  json["largest_batches"] = Json::array();
  for (const uint32_t context : result.plan.sweep_contexts) {
    json["largest_batches"].push_back(
        {{"context", context}, {"batch", LargestBatch(result, context)}});
  }
  return Text(json);
}

}  // namespace pergola
