// A group without a model, over the worker's own links: it answers each plan after a stated time,
// at once by default, with ids drawn from a counter. So what is measured is everything but the
// devices: engine, protocol, doors, clients. Attaches to a running coordinator like any group and
// serves until it is terminated.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/log.h"
#include "model/text_parts.h"
#include "worker/step/coordinator_link.h"
#include "worker/step/results_link.h"
#include "worker/worker_options.h"

namespace pergola {
namespace {

struct Options {
  std::string model;
  std::string connect;
  std::string join_token_file;
  std::string group = "null";
  uint32_t slots = 256;
  uint32_t step_tokens = 4096;
  uint32_t kv_tokens = 1 << 20;
  uint32_t step_us = 0;
  uint32_t row_ns = 0;
};

volatile std::sig_atomic_t terminated = 0;

v1::Hello MakeHello(const Options& options, const TextParts& parts) {
  constexpr uint32_t kBlockTokens = 32;
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_group(options.group);
  hello.set_fingerprint("null");
  hello.set_text_hash(parts.hash);
  hello.set_numerics_id("null");
  hello.set_bitwise(true);
  hello.mutable_layout()->set_tensor_parallel(1);
  hello.mutable_layout()->set_pipeline_parallel(1);
  hello.mutable_layout()->add_stages()->set_layer_count(1);
  hello.set_vocabulary_size(static_cast<uint32_t>(parts.vocabulary_size));
  hello.set_context_length(static_cast<uint32_t>(parts.context_length));
  hello.set_block_tokens(kBlockTokens);
  hello.set_block_count(options.kv_tokens / kBlockTokens);
  hello.set_slot_count(options.slots);
  hello.set_step_tokens(options.step_tokens);
  hello.set_model(parts.model_name);
  hello.set_architecture(parts.architecture);
  return hello;
}

// The ids differ from position to position, so that detokenizing them is honest work.
v1::StepResult Execute(const v1::StepPlan& plan, uint32_t vocabulary, int64_t* rows) {
  v1::StepResult result;
  result.set_plan_id(plan.plan_id());
  result.set_epoch(plan.epoch());
  *rows = 0;
  for (const v1::Entry& entry : plan.entries()) {
    *rows += std::max(1, entry.ids_size());
    v1::EntryResult* out = result.add_entries();
    for (const uint32_t offset : entry.logits_at()) {
      uint64_t z = (uint64_t{entry.slot()} << 32 | (entry.first_position() + offset)) + 1;
      z *= 0x9E3779B97F4A7C15ULL;  // Knuth's multiplicative hash, golden ratio of 64 bits
      out->add_ids(static_cast<int32_t>((z >> 32) % vocabulary));
    }
  }
  v1::StageTime* time = result.add_stages();
  time->set_start_us(0);
  return result;
}

int Serve(const Options& options) {
  const absl::StatusOr<TextParts> parts = LoadTextParts(options.model);
  const absl::StatusOr<std::string> token =
      options.join_token_file.empty() ? std::string() : ReadJoinToken(options.join_token_file);
  for (const absl::Status& status : {parts.status(), token.status()}) {
    if (status.ok()) continue;
    std::fprintf(stderr, "null_group: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  InternalClient client(options.connect, *token);
  CoordinatorLinkOptions attach;
  attach.group = options.group;
  CoordinatorLink plans(&client, attach);
  ResultsLinkOptions send;
  send.group = options.group;
  ResultsLink results(&client, send);
  plans.SendHello(MakeHello(options, *parts));
  // Steps follow each other on a device; a late step does not make the next one shorter.
  auto free_at = std::chrono::steady_clock::now();
  v1::StepPlan plan;
  while (terminated == 0) {
    const absl::StatusOr<PlanSource::Next> next = plans.Take(true, &plan);
    if (!next.ok()) {
      std::fprintf(stderr, "null_group: %s\n", std::string(next.status().message()).c_str());
      return plans.exit_code();
    }
    if (*next == PlanSource::Next::kEnd) break;
    if (*next == PlanSource::Next::kNone) continue;
    int64_t rows = 0;
    v1::StepResult result = Execute(plan, static_cast<uint32_t>(parts->vocabulary_size), &rows);
    if (options.step_us + options.row_ns > 0) {
      free_at = std::max(free_at, std::chrono::steady_clock::now()) +
                std::chrono::nanoseconds(int64_t{options.step_us} * 1000 +
                                         rows * int64_t{options.row_ns});
      std::this_thread::sleep_until(free_at);
    }
    results.Push(std::move(result));
  }
  return kExitOk;
}

int Main(int argc, char** argv) {
  CLI::App app("A group that computes nothing: measures the rest of the service");
  Options options;
  app.add_option("--model", options.model, "The coordinator's model")->required();
  app.add_option("--connect", options.connect, "The coordinator's internal address")->required();
  app.add_option("--join-token-file", options.join_token_file, "File with the join token");
  app.add_option("--group", options.group, "Name of the group");
  AddNumber(app, "--slots", &options.slots, {1, 4096}, "sequences at once")->capture_default_str();
  AddNumber(app, "--step-tokens", &options.step_tokens, {1, 1 << 20}, "rows of a step")
      ->capture_default_str();
  AddNumber(app, "--kv-tokens", &options.kv_tokens, {32, 1 << 30}, "positions of KV cache")
      ->capture_default_str();
  AddNumber(app, "--step-us", &options.step_us, {0, 10'000'000}, "time of a step")
      ->capture_default_str();
  AddNumber(app, "--row-ns", &options.row_ns, {0, 1'000'000'000}, "and of each row in it")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGTERM, [](int) { terminated = 1; });
  std::signal(SIGINT, [](int) { terminated = 1; });
  InitLog("null_group", "warn");
  return Serve(options);
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
