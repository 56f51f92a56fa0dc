// The worker's own loop without a coordinator, protocol or client: one rank, plans from memory.
// What the whole service loses against it is the service's cost (scripts/bench_service).
//   worker_loop_bench MODEL [--streams N] [--prompt-tokens P] [--output-tokens T] [--threads C]
//                     [--rounds R]
// One more round goes before, to warm up. Prints one line of JSON: medians over the rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/log.h"
#include "kernels/sample.h"
#include "model/checkpoint.h"
#include "worker/comm/shm_communicator.h"
#include "worker/step/stage_executor.h"
#include "worker/step/step_loop.h"

namespace pergola {
namespace {

struct Options {
  std::string model;
  uint32_t streams = 1;
  uint32_t prompt_tokens = 8;
  uint32_t output_tokens = 64;
  uint32_t threads = 2;
  uint32_t rounds = 10;
};

using Clock = std::chrono::steady_clock;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// Round after round: the prompts of all streams in as few plans as hold them, then plans in which
// each stream gets a token. Each plan goes out as soon as the loop asks for one, as run-ahead does.
class Rounds : public PlanSource, public ResultSink {
 public:
  Rounds(const Options& options, const ExecutorOptions& executor, int64_t vocabulary)
      : options_(options), executor_(executor), vocabulary_(vocabulary) {}

  absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override {
    // One plan at a time: its results are there when the loop asks again.
    if (!wait) return Next::kNone;
    if (step_ == 0) start_ = Clock::now();
    if (step_ == prompt_plans() + options_.output_tokens - 1) {
      decode_s_.push_back(Seconds(Clock::now() - decode_start_));
      if (!warm_) {
        warm_ = true;
        decode_s_.clear();
        first_token_s_.clear();
      }
      if (decode_s_.size() == options_.rounds) return Next::kEnd;
      step_ = 0;
      start_ = Clock::now();
    }
    plan->Clear();
    plan->set_plan_id(++plan_id_);
    plan->set_epoch(1);
    if (step_ < prompt_plans()) {
      AddPrompts(plan);
    } else {
      AddDecodes(plan);
    }
    ++step_;
    return Next::kPlan;
  }

  void Push(v1::StepResult) override {
    if (step_ != prompt_plans()) return;
    decode_start_ = Clock::now();
    first_token_s_.push_back(Seconds(decode_start_ - start_));
  }

  void Print() const {
    const double step_s = Median(decode_s_) / (options_.output_tokens - 1);
    std::printf(
        "{\"streams\": %u, \"tokens_per_s\": %.3f, \"step_ms\": %.4f, \"first_token_ms\": %.4f}\n",
        options_.streams, options_.streams / step_s, step_s * 1e3, Median(first_token_s_) * 1e3);
  }

 private:
  static double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

  uint32_t streams_per_plan() const {
    return std::max<uint32_t>(
        1, static_cast<uint32_t>(executor_.step_tokens) / options_.prompt_tokens);
  }
  uint32_t prompt_plans() const {
    return (options_.streams + streams_per_plan() - 1) / streams_per_plan();
  }

  void AddPrompts(v1::StepPlan* plan) {
    const uint32_t first = step_ * streams_per_plan();
    const uint32_t end = std::min(options_.streams, first + streams_per_plan());
    const int64_t length = options_.prompt_tokens + options_.output_tokens;
    const auto blocks =
        static_cast<uint32_t>((length + executor_.block_tokens - 1) / executor_.block_tokens);
    for (uint32_t slot = first; slot < end; ++slot) {
      v1::SlotStart* start = plan->add_starts();
      start->set_slot(slot);
      start->set_prompt_tokens(options_.prompt_tokens);
      v1::Entry* entry = plan->add_entries();
      entry->set_slot(slot);
      for (uint32_t i = 0; i < options_.prompt_tokens; ++i) {
        entry->add_ids(static_cast<int32_t>((slot * 7919 + i * 104729 + 1) % vocabulary_));
      }
      for (uint32_t b = 0; b < blocks; ++b) entry->add_block_ids(slot * blocks + b);
      entry->add_logits_at(options_.prompt_tokens - 1);
    }
  }

  void AddDecodes(v1::StepPlan* plan) {
    const uint32_t token = step_ - prompt_plans();
    for (uint32_t slot = 0; slot < options_.streams; ++slot) {
      v1::Entry* entry = plan->add_entries();
      entry->set_slot(slot);
      // Where the token before was sampled: in the slot's prompt plan, or in the plan before.
      const uint32_t back = token == 0 ? prompt_plans() - slot / streams_per_plan() : 1;
      entry->mutable_from()->set_plan_id(plan_id_ - back);
      entry->mutable_from()->set_entry(token == 0 ? slot % streams_per_plan() : slot);
      entry->set_first_position(options_.prompt_tokens + token);
      entry->add_logits_at(0);
    }
  }

  const Options& options_;
  const ExecutorOptions& executor_;
  const int64_t vocabulary_;
  uint64_t plan_id_ = 0;
  uint32_t step_ = 0;  // of the round
  bool warm_ = false;
  Clock::time_point start_, decode_start_;
  std::vector<double> first_token_s_, decode_s_;
};

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  const ModelSpec& spec = checkpoint->spec();
  ASSIGN_OR_RETURN(const RankLayout layout, MakeLayout(spec, 1, 1, 0));
  StreamOptions stream_options;
  stream_options.threads = static_cast<int>(options.threads);
  stream_options.workspace_bytes =
      options.threads * SampleWorkspaceBytes(spec.vocabulary, spec.context_length);
  // As a rank does it that has the machine for itself.
  if (options.threads == std::thread::hardware_concurrency()) stream_options.first_cpu = 0;
  const auto stream = CpuStream::Create(stream_options);
  ExecutorOptions executor_options;
  executor_options.slot_count = options.streams;
  ASSIGN_OR_RETURN(const auto executor,
                   StageExecutor::Load(*checkpoint, layout, executor_options, *stream, nullptr,
                                       [](const std::string&, int64_t, int64_t) {}));
  Rounds rounds(options, executor_options, spec.vocabulary);
  WaitBoard board;
  ShmOptions alone;
  alone.board = &board;
  const auto region = SharedRegion::OnHeap(ShmCommunicator::RegionBytes(alone));
  ShmCommunicator::Format(*region);
  ShmCommunicator communicator(region, alone);
  StepLoopOptions loop_options;
  loop_options.layout = layout;
  loop_options.hidden = spec.hidden;
  loop_options.step_tokens = executor_options.step_tokens;
  loop_options.now_us = WaitBoard::SteadyMicroseconds;
  StepLoopParts parts;
  parts.plans = &rounds;
  parts.results = &rounds;
  parts.communicator = &communicator;
  parts.executor = executor.get();
  parts.board = &board;
  StepLoop loop(loop_options, parts);
  RETURN_IF_ERROR(loop.Run());
  rounds.Print();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Decode steps of one rank without a coordinator");
  Options options;
  app.add_option("model", options.model, "Model directory or .gguf file")->required();
  AddNumber(app, "--streams", &options.streams, {1, 1024}, "sequences at once");
  AddNumber(app, "--prompt-tokens", &options.prompt_tokens, {1, 512}, "per sequence");
  AddNumber(app, "--output-tokens", &options.output_tokens, {2, 4096}, "per sequence");
  AddNumber(app, "--threads", &options.threads, {1, 1024}, "of the rank");
  AddNumber(app, "--rounds", &options.rounds, {1, 1000}, "measured");
  CLI11_PARSE(app, argc, argv);
  InitLog("worker_loop_bench", "warn");
  const absl::Status status = Run(options);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "worker_loop_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
