// `pergola plan`: does a model fit, in which layout, how many sequences, how fast at best.
#include <cstdio>
#include <memory>

#include "base/available_memory.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/plan_maker.h"
#include "client/plan_report.h"
#include "model/cost_model.h"
#include "model/shape_spec.h"

namespace pergola {
namespace {

struct PlanFlags {
  PlanOptions plan;
  int64_t kv_mib = 0;
  bool json = false;
  bool cluster_given = false;  // --nodes, --gpus, --batch or --length
};

absl::StatusOr<PlanReport> Plan(const PlanFlags& flags) {
  PlanOptions options = flags.plan;
  if (options.gpu.empty() && flags.cluster_given) {
    return absl::InvalidArgumentError(
        absl::StrCat("--nodes, --gpus, --batch and --length need --gpu; known are ", GpuNames()));
  }
  options.kv_bytes = flags.kv_mib << 20;
  options.available_memory = AvailableMemory();
  ASSIGN_OR_RETURN(const ShapeSpec shape, OpenShape(options));
  return MakePlan(shape, options);
}

int RunPlan(const PlanFlags& flags) {
  const absl::StatusOr<PlanReport> report = Plan(flags);
  if (!report.ok()) {
    std::fprintf(stderr, "pergola: plan: %s\n", std::string(report.status().message()).c_str());
    return report.status().code() == absl::StatusCode::kResourceExhausted ? 1 : kExitUsage;
  }
  const std::string text = flags.json ? PlanJson(*report).dump(2) + "\n" : PlanText(*report);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kExitOk;
}

void AddLimitFlags(CLI::App* command, PlanFlags* flags) {
  PlanOptions& plan = flags->plan;
  command
      ->add_option(
          "--dtype", plan.dtype,
          "of the weight matrices: f32, bf16, f16, int8, fp8 (with --gpu), int4, or auto: the "
          "checkpoint's, bf16 for a known name")
      ->capture_default_str();
  command->add_option("--kv-dtype", plan.kv_dtype,
                      "f32, bf16 or f16 (default: f32 if all matrices are f32, else f16)");
  command
      ->add_option("--context,--context-length", plan.context_length,
                   "tokens a sequence may have (default: the model's, or what the KV holds)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  command
      ->add_option("--slots", plan.slot_count,
                   "sequences at once (default: 512 with --gpu, else 64)")
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--block-tokens", plan.block_tokens, "positions per KV block")
      ->capture_default_str();
  command->add_option("--step-tokens", plan.step_tokens, "most token rows per step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--kv-mib", flags->kv_mib,
                   "KV memory per rank, without --gpu (default: what all slots use, at most 1024)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
}

}  // namespace

void AddPlan(CLI::App& app, const Context& /*context*/, int* exit_code) {
  auto flags = std::make_shared<PlanFlags>();
  PlanOptions& plan = flags->plan;
  CLI::App* command = app.add_subcommand(
      "plan",
      "Print whether a model fits, in which layout, with how much memory per rank, and with --gpu "
      "the floor of its step times");
  command->footer(
      "Exit code: 0 it fits, 1 it does not (what is missing and what would fit is said), 2 wrong "
      "flags or names.\nTimes are floors from data-sheet numbers, not measurements.");
  command
      ->add_option("model", plan.model,
                   "model directory, .gguf file, or a known name: " + KnownShapeNames())
      ->required();
  command->add_option("--gpu", plan.gpu, GpuNames() + " (default: none, the CPU of this machine)");
  std::vector<CLI::Option*> cluster = {
      command->add_option("--nodes", plan.nodes, "machines")
          ->check(CLI::Range(1, 1024))
          ->capture_default_str(),
      command->add_option("--gpus", plan.gpus_per_node, "GPUs of a machine")
          ->check(CLI::Range(1, 64))
          ->capture_default_str(),
      command
          ->add_option("--batch", plan.batch,
                       "sequences at once that layouts are compared at (the fastest is chosen)")
          ->check(CLI::Range(1, 1 << 16))
          ->capture_default_str(),
      command
          ->add_option("--length", plan.length,
                       "cached tokens per sequence that times are for (default: half the context)")
          ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))};
  command
      ->add_option("--tp", plan.tensor_parallel,
                   "ranks per stage (default: the best with --gpu, else 1)")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--pp", plan.pipeline_parallel, "stages (default: all GPUs with --gpu, else 1)")
      ->check(CLI::Range(1, 1 << 20));
  AddLimitFlags(command, flags.get());
  command->add_flag("--json", flags->json, "print JSON instead of text");
  command->callback([=] {
    for (const CLI::Option* option : cluster) {
      flags->cluster_given = flags->cluster_given || option->count() > 0;
    }
    *exit_code = RunPlan(*flags);
  });
}

}  // namespace pergola
