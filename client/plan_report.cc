#include "client/plan_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr double kMs = 1e3;

// 1234567 as "1,234,567": totals are compared by eye.
std::string Grouped(int64_t value) {
  std::string digits = std::to_string(value);
  const size_t first = value < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string Gb(int64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9);
}

bool SamePlan(const MemoryPlan& a, const MemoryPlan& b) {
  return a.weight_bytes == b.weight_bytes && a.block_bytes == b.block_bytes &&
         a.decoder_bytes == b.decoder_bytes && a.residual_bytes == b.residual_bytes &&
         a.table_bytes == b.table_bytes && a.logit_bytes == b.logit_bytes;
}

std::string ModelText(const PlanReport& report) {
  const ModelSpec& spec = report.shape.spec;
  return absl::StrFormat(
      "model      %s (%s): %s parameters, %d layers, hidden %d, %d heads over %d KV heads, FFN %d, "
      "vocabulary %d\n           weights %s, KV %s, context %d%s\n",
      spec.name, spec.architecture, Grouped(report.shape.ParameterCount()), spec.layers,
      spec.hidden, spec.heads, spec.kv_heads, spec.ffn, spec.vocabulary,
      report.shape.MatrixDTypes(), std::string(DTypeName(report.limits.kv_dtype)),
      report.limits.context_length,
      report.limits.context_length == spec.context_length
          ? ""
          : absl::StrFormat(" (the model's is %d)", spec.context_length));
}

std::string LayoutText(const PlanReport& report) {
  std::string text = absl::StrFormat("layout     tensor parallel %d x pipeline parallel %d",
                                     report.tensor_parallel, report.pipeline_parallel);
  if (report.gpu) {
    absl::StrAppendFormat(&text, " on %d node%s x %d %s", report.cluster.nodes,
                          report.cluster.nodes == 1 ? "" : "s", report.cluster.gpus_per_node,
                          report.cluster.gpu.title);
  } else {
    absl::StrAppend(&text, " on this machine's CPU");
  }
  return text + "\n";
}

std::string CandidatesText(const PlanReport& report) {
  if (report.candidates.size() < 2) return "";
  std::string text = absl::StrFormat(
      "\nlayouts tried, at %d cached tokens per sequence\n"
      "   TP   PP   largest batch   ms per step, batch 1   ms per token, batch\n",
      report.length);
  for (const PlanCandidate& candidate : report.candidates) {
    absl::StrAppendFormat(&text, "%5d%5d", candidate.tensor_parallel, candidate.pipeline_parallel);
    if (!candidate.fits) {
      absl::StrAppendFormat(&text, "   %s\n", candidate.refused);
      continue;
    }
    const bool chosen = candidate.tensor_parallel == report.tensor_parallel &&
                        candidate.pipeline_parallel == report.pipeline_parallel;
    absl::StrAppendFormat(&text, "%16d%23.3f%15.4f, %d%s\n", candidate.largest_batch,
                          candidate.one_step_ms, candidate.chosen_token_ms, candidate.chosen_batch,
                          chosen ? "   chosen" : "");
  }
  return text;
}

std::string RankRange(size_t first, size_t last) {
  return first == last ? absl::StrCat(first) : absl::StrCat(first, "-", last);
}

// Neighbouring ranks of one stage that hold as much share a line.
std::string MemoryText(const PlanReport& report) {
  std::string text =
      absl::StrFormat("\nmemory of each rank, bytes\n%7s%6s%9s%18s%18s%15s%14s%15s%15s%10s%18s\n",
                      "rank", "stage", "layers", "weights", "KV", "workspaces", "tables", "logits",
                      "peer buffers", "padding", "total");
  for (size_t first = 0; first < report.ranks.size();) {
    const MemoryPlan& plan = report.ranks[first];
    const RankLayout& layout = report.layouts[first];
    size_t last = first;
    while (last + 1 < report.ranks.size() && report.layouts[last + 1].stage == layout.stage &&
           SamePlan(report.ranks[last + 1], plan)) {
      ++last;
    }
    absl::StrAppendFormat(
        &text, "%7s%6d%9s%18s%18s%15s%14s%15s%15s%10s%18s\n", RankRange(first, last), layout.stage,
        RankRange(layout.layers.begin, layout.layers.end - 1), Grouped(plan.weights()),
        Grouped(plan.kv_bytes()), Grouped(plan.workspace_bytes()), Grouped(plan.table_bytes),
        Grouped(plan.logit_bytes), Grouped(plan.peer_bytes), Grouped(plan.padding()),
        Grouped(plan.total()));
    first = last + 1;
  }
  absl::StrAppend(&text, "weights of rank 0:");
  for (int kind = 0; kind < kWeightKinds; ++kind) {
    absl::StrAppendFormat(&text, "%s %s %s", kind == 0 ? "" : " +",
                          WeightKindName(static_cast<WeightKind>(kind)),
                          Grouped(report.ranks[0].weight_bytes[kind]));
  }
  absl::StrAppendFormat(&text, " = %s\n", Grouped(report.ranks[0].weights()));
  absl::StrAppendFormat(&text, "all ranks: %s bytes", Grouped(report.total_bytes()));
  if (report.budget_bytes > 0) {
    absl::StrAppendFormat(&text, "; %s: %s",
                          report.gpu ? "one GPU has" : "available on this machine",
                          Grouped(report.budget_bytes));
  }
  return text + "\n";
}

std::string CapacityText(const PlanReport& report) {
  const int64_t blocks = report.limits.block_count;
  std::string text = absl::StrFormat(
      "\nKV         %s blocks of %d tokens (%s tokens)\nbatch      at most %d sequences of the "
      "full %d tokens",
      Grouped(blocks), report.limits.block_tokens, Grouped(blocks * report.limits.block_tokens),
      report.largest_batch, report.limits.context_length);
  if (report.gpu) {
    absl::StrAppendFormat(&text, ", %d of %d", report.largest_batch_at_length, report.length);
  }
  return text + "\n";
}

std::string StepsText(const PlanReport& report) {
  if (report.steps.empty()) return "";
  std::string text = absl::StrFormat(
      "\npredicted floor of a decode step, %d cached tokens per sequence (model/cost_model.h)\n"
      "batch  micro-batches  step ms  ms/token     tokens/s  bubble   slowest stage: matrices      "
      " "
      "KV  all-reduce  sampling   hops, ms\n",
      report.length);
  for (const PlannedStep& step : report.steps) {
    const DecodeCost& cost = step.cost;
    absl::StrAppendFormat(&text, "%5d%15d%9.3f%10.4f%13.0f%7.1f%%%26.3f%9.3f%12.3f%10.3f%8.3f%s\n",
                          cost.batch, cost.micro_batches, cost.step_seconds * kMs,
                          cost.token_seconds() * kMs, 1 / cost.token_seconds(), cost.bubble * 100,
                          cost.slowest.matrices * kMs, cost.slowest.kv * kMs,
                          cost.slowest.all_reduce * kMs, cost.slowest.sampling * kMs,
                          cost.hop_seconds * kMs, step.fits ? "" : "   more than the KV holds");
  }
  return text;
}

std::string ComparedText(const PlanReport& report) {
  if (report.compared.empty()) return "";
  std::string text = absl::StrFormat(
      "\npublished: %s (%s), beside this floor at %d cached tokens\nbatch  published ms/token  "
      "floor ms/token  share of the floor reached\n",
      report.published.what, report.published.source, report.published.length);
  for (const ComparedTime& time : report.compared) {
    absl::StrAppendFormat(&text, "%5d%20.2f%16.3f%27.1f%%\n", time.published.batch,
                          time.published.token_ms, time.floor_ms,
                          100 * time.floor_ms / time.published.token_ms);
  }
  return text;
}

nlohmann::ordered_json RankJson(const RankLayout& layout, const MemoryPlan& plan) {
  nlohmann::ordered_json weights;
  for (int kind = 0; kind < kWeightKinds; ++kind) {
    weights[WeightKindName(static_cast<WeightKind>(kind))] = plan.weight_bytes[kind];
  }
  return {{"rank", layout.world_rank},
          {"stage", layout.stage},
          {"first_layer", layout.layers.begin},
          {"layers", layout.layers.size()},
          {"heads", layout.heads.size()},
          {"kv_heads", layout.kv_heads.size()},
          {"weight_bytes", plan.weights()},
          {"weight_bytes_by_role", weights},
          {"kv_bytes", plan.kv_bytes()},
          {"kv_block_bytes", plan.block_bytes},
          {"workspace_bytes", plan.workspace_bytes()},
          {"table_bytes", plan.table_bytes},
          {"logit_bytes", plan.logit_bytes},
          {"peer_bytes", plan.peer_bytes},
          {"padding_bytes", plan.padding()},
          {"total_bytes", plan.total()}};
}

void AddTimesJson(const PlanReport& report, nlohmann::ordered_json* json) {
  (*json)["cluster"] = {{"gpu", report.cluster.gpu.name},
                        {"nodes", report.cluster.nodes},
                        {"gpus_per_node", report.cluster.gpus_per_node}};
  (*json)["length"] = report.length;
  (*json)["largest_batch_at_length"] = report.largest_batch_at_length;
  (*json)["layouts_tried"] = nlohmann::ordered_json::array();
  for (const PlanCandidate& candidate : report.candidates) {
    nlohmann::ordered_json one = {{"tensor_parallel", candidate.tensor_parallel},
                                  {"pipeline_parallel", candidate.pipeline_parallel},
                                  {"fits", candidate.fits}};
    if (candidate.fits) {
      one["largest_batch"] = candidate.largest_batch;
      one["batch_1_step_ms"] = candidate.one_step_ms;
      one["compared_at_batch"] = candidate.chosen_batch;
      one["token_ms"] = candidate.chosen_token_ms;
    } else {
      one["refused"] = candidate.refused;
      one["missing_bytes"] = candidate.missing_bytes;
    }
    (*json)["layouts_tried"].push_back(one);
  }
  (*json)["steps"] = nlohmann::ordered_json::array();
  for (const PlannedStep& step : report.steps) {
    const DecodeCost& cost = step.cost;
    (*json)["steps"].push_back({{"batch", cost.batch},
                                {"fits", step.fits},
                                {"micro_batches", cost.micro_batches},
                                {"step_ms", cost.step_seconds * kMs},
                                {"token_ms", cost.token_seconds() * kMs},
                                {"tokens_per_second", 1 / cost.token_seconds()},
                                {"bubble", cost.bubble},
                                {"matrices_ms", cost.slowest.matrices * kMs},
                                {"kv_ms", cost.slowest.kv * kMs},
                                {"all_reduce_ms", cost.slowest.all_reduce * kMs},
                                {"sampling_ms", cost.slowest.sampling * kMs},
                                {"hops_ms", cost.hop_seconds * kMs}});
  }
  if (report.compared.empty()) return;
  nlohmann::ordered_json times = nlohmann::ordered_json::array();
  for (const ComparedTime& time : report.compared) {
    times.push_back({{"batch", time.published.batch},
                     {"published_token_ms", time.published.token_ms},
                     {"floor_token_ms", time.floor_ms},
                     {"share_of_floor", time.floor_ms / time.published.token_ms}});
  }
  (*json)["published"] = {{"what", report.published.what},
                          {"source", report.published.source},
                          {"length", report.published.length},
                          {"times", times}};
}

}  // namespace

int64_t PlanReport::total_bytes() const {
  int64_t total = 0;
  for (const MemoryPlan& plan : ranks) total += plan.total();
  return total;
}

std::string PlanText(const PlanReport& report) {
  std::string text = ModelText(report) + LayoutText(report);
  if (!report.shortened.empty()) absl::StrAppend(&text, "note       ", report.shortened, "\n");
  if (report.gpu) {
    int64_t weights = 0;
    for (const MemoryPlan& plan : report.ranks) weights += plan.weights();
    absl::StrAppendFormat(&text, "           %s of weights on %d GPUs of %s\n", Gb(weights),
                          report.ranks.size(), Gb(report.budget_bytes));
  }
  return absl::StrCat(text, CandidatesText(report), MemoryText(report), CapacityText(report),
                      StepsText(report), ComparedText(report));
}

nlohmann::ordered_json PlanJson(const PlanReport& report) {
  const ModelSpec& spec = report.shape.spec;
  nlohmann::ordered_json json;
  json["model"] = {{"name", spec.name},
                   {"architecture", spec.architecture},
                   {"parameters", report.shape.ParameterCount()},
                   {"layers", spec.layers},
                   {"hidden", spec.hidden},
                   {"heads", spec.heads},
                   {"kv_heads", spec.kv_heads},
                   {"ffn", spec.ffn},
                   {"vocabulary", spec.vocabulary},
                   {"context_length", spec.context_length},
                   {"weight_dtypes", report.shape.MatrixDTypes()}};
  json["device"] = report.gpu ? "gpu" : "cpu";
  json["layout"] = {{"tensor_parallel", report.tensor_parallel},
                    {"pipeline_parallel", report.pipeline_parallel}};
  json["context_length"] = report.limits.context_length;
  if (!report.shortened.empty()) json["note"] = report.shortened;
  json["kv"] = {{"dtype", std::string(DTypeName(report.limits.kv_dtype))},
                {"block_tokens", report.limits.block_tokens},
                {"blocks", report.limits.block_count}};
  json["slots"] = report.limits.slot_count;
  json["step_tokens"] = report.limits.step_tokens;
  json["ranks"] = nlohmann::ordered_json::array();
  for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
    json["ranks"].push_back(RankJson(report.layouts[rank], report.ranks[rank]));
  }
  json["total_bytes"] = report.total_bytes();
  json["budget_bytes"] = report.budget_bytes;
  json["largest_batch"] = report.largest_batch;
  if (report.gpu) AddTimesJson(report, &json);
  return json;
}

}  // namespace pergola
