// What the engine costs per step: planning, answering and delivering for a full batch, without any
// model.
//   engine_bench                     the numbers
//   engine_bench --benchmark_min_time=0.01   a quick run that only shows it works
#include <benchmark/benchmark.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/log.h"
#include "coordinator/engine/engine_core.h"

namespace pergola {
namespace {

constexpr uint32_t kPrompt = 64;

class KeepLast final : public GroupLink {
 public:
  void Welcome(uint64_t) override {}
  void Send(std::shared_ptr<const v1::StepPlan> plan) override { plans.push_back(std::move(plan)); }
  void Close(const absl::Status&) override {}
  std::vector<std::shared_ptr<const v1::StepPlan>> plans;
};

v1::StepResult AnswerTo(const v1::StepPlan& plan) {
  v1::StepResult result;
  result.set_plan_id(plan.plan_id());
  result.set_epoch(plan.epoch());
  for (const v1::Entry& entry : plan.entries()) {
    v1::EntryResult& out = *result.add_entries();
    if (entry.logits_at_size() > 0) out.add_ids(1);
  }
  return result;
}

class OneByOne final : public Admission {
 public:
  Sequence* Next() override { return next == waiting.size() ? nullptr : waiting[next]; }
  void Admitted(Sequence&) override { ++next; }
  void Preempted(Sequence&) override {}
  std::vector<Sequence*> waiting;
  size_t next = 0;
};

SchedulerLimits LimitsFor(uint32_t sequences, uint32_t stages) {
  SchedulerLimits limits;
  limits.epoch = 1;
  limits.slot_count = sequences;
  limits.block_count = 1U << 20;
  limits.block_tokens = 32;
  limits.step_tokens = 4096;
  limits.prefill_rows = 4096;
  limits.stages = stages;
  limits.vocabulary_size = 1000;
  return limits;
}

// Scheduler::Plan alone, all sequences decoding. Arguments: sequences, stages, length of their
// history.
void BM_PlanDecodeStep(benchmark::State& state) {
  const auto count = static_cast<uint32_t>(state.range(0));
  const auto stages = static_cast<uint32_t>(state.range(1));
  const auto history = static_cast<uint32_t>(state.range(2));
  Scheduler scheduler(LimitsFor(count, stages));
  OneByOne queue;
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (uint32_t i = 0; i < count; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = i + 1;
    sequence->known.assign(history, 1);
    sequence->prompt_count = history;
    sequence->max_known = history + (1U << 20);
    queue.waiting.push_back(sequence.get());
    sequences.push_back(std::move(sequence));
  }
  std::vector<Scheduler::Outcome> outcomes;
  std::vector<std::shared_ptr<v1::StepPlan>> plans;
  const auto decoding = [&] {
    for (const auto& sequence : sequences) {
      if (sequence->known.size() == history) return false;
    }
    return true;
  };
  while (!decoding()) {
    auto plan = scheduler.Plan(queue);
    if (plan != nullptr) plans.push_back(plan);
    if (plan != nullptr && scheduler.in_flight() < scheduler.depth()) continue;
    (void)scheduler.Apply(AnswerTo(*plans.front()), &outcomes);
    plans.erase(plans.begin());
  }
  int64_t entries = 0;
  int64_t made = 0;
  for (auto _ : state) {
    state.PauseTiming();
    while (scheduler.in_flight() == scheduler.depth()) {
      (void)scheduler.Apply(AnswerTo(*plans.front()), &outcomes);
      plans.erase(plans.begin());
    }
    state.ResumeTiming();
    auto plan = scheduler.Plan(queue);
    benchmark::DoNotOptimize(plan);
    if (plan == nullptr) {
      state.SkipWithError("no plan");
      break;
    }
    entries += plan->entries_size();
    ++made;
    plans.push_back(std::move(plan));
  }
  state.counters["entries/plan"] =
      made == 0 ? 0 : static_cast<double>(entries) / static_cast<double>(made);
}
BENCHMARK(BM_PlanDecodeStep)
    ->Args({256, 1, 64})
    ->Args({256, 1, 4000})
    ->Args({256, 2, 64})
    ->Args({1024, 1, 64})
    ->Unit(benchmark::kMicrosecond);

// A whole step of the core: apply the result, deliver 256 tokens to mailboxes, plan and send the
// next step.
void BM_CoreStep(benchmark::State& state) {
  spdlog::set_level(spdlog::level::warn);
  const auto count = static_cast<uint32_t>(state.range(0));
  EngineCore core(EngineOptions(), 0, nullptr);
  auto link = std::make_shared<KeepLast>();
  v1::Hello hello;
  hello.set_protocol_version(1);
  hello.set_group("g");
  hello.mutable_layout()->set_tensor_parallel(1);
  hello.mutable_layout()->set_pipeline_parallel(1);
  hello.set_vocabulary_size(1000);
  hello.set_context_length(1U << 30);
  hello.set_block_count(1U << 20);
  hello.set_block_tokens(128);
  hello.set_slot_count(count);
  hello.set_step_tokens(1U << 20);
  core.GroupAttached(1, hello, link, 0);
  core.ResultsConnected("g", 2, 0);
  core.Advance(0);
  const auto step = [&] {
    const auto plan = link->plans.front();
    link->plans.erase(link->plans.begin());
    const v1::StepResult result = AnswerTo(*plan);
    core.GroupResult("g", result, 0);
    core.Advance(0);
  };
  step();
  std::vector<std::shared_ptr<Mailbox>> mailboxes;
  for (uint32_t i = 0; i < count; ++i) {
    SequenceRequest request;
    request.prompt_ids.assign(kPrompt, 1);
    request.max_new_tokens = 1U << 18;
    request.mailbox = std::make_shared<Mailbox>([] {});
    mailboxes.push_back(request.mailbox);
    core.Submit(i + 1, std::move(request), 0);
  }
  core.Advance(0);
  for (uint32_t i = 0; i < 4 * count; ++i) step();
  for (auto _ : state) {
    step();
    state.PauseTiming();
    for (const auto& mailbox : mailboxes) mailbox->Take();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * count);
}
BENCHMARK(BM_CoreStep)->Arg(1)->Arg(32)->Arg(256)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace pergola

BENCHMARK_MAIN();
