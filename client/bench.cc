// `pergola bench`: loads servers as told and says how they did.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"
#include "client/bench/report.h"
#include "client/bench/run.h"
#include "client/bench/streams.h"
#include "client/bench/sweep.h"
#include "client/commands.h"
#include "client/connect_flags.h"
#include "client/files.h"

namespace pergola {
namespace {

// As a shell reports a process that SIGINT has ended.
constexpr int kExitInterrupted = 130;
constexpr std::chrono::seconds kStatusTimeout{5};

struct BenchOptions {
  PublicTarget target;
  BenchFlags flags;
};

// One or several, in the order given.
absl::StatusOr<std::vector<std::string>> Addresses(const PublicTarget& target) {
  ASSIGN_OR_RETURN(std::vector<std::string> addresses, SplitAddresses(target.connect));
  if (addresses.empty()) addresses.push_back("");
  for (std::string& address : addresses) {
    ASSIGN_OR_RETURN(address, PublicAddress({target.run_file, address}));
  }
  return addresses;
}

std::vector<std::string> PlotNames(BenchMode mode) {
  if (mode == BenchMode::kSweep) return {"sweep", "step"};
  return {"latency", "tokens"};
}

std::string PlotFile(const BenchFlags& flags, const std::string& name) {
  return absl::StrCat(flags.svg, "-", name, ".svg");
}

// Not after minutes of measuring.
absl::Status CheckFiles(const BenchFlags& flags, BenchMode mode) {
  if (!flags.json.empty() && flags.json != "-") {
    RETURN_IF_ERROR(Prefixed(CheckWritable(flags.json), "--json"));
  }
  if (flags.svg.empty()) return absl::OkStatus();
  for (const std::string& name : PlotNames(mode)) {
    RETURN_IF_ERROR(Prefixed(CheckWritable(PlotFile(flags, name)), "--svg"));
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path);
  file << content;
  file.close();
  if (!file) return absl::DataLossError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

absl::Status Publish(const BenchFlags& flags, const std::string& text, const std::string& json,
                     const std::vector<NamedPlot>& plots) {
  const bool json_out = flags.json == "-";
  std::fputs(text.c_str(), json_out ? stderr : stdout);
  if (json_out) std::fputs(json.c_str(), stdout);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return absl::DataLossError("cannot write to standard output");
  }
  if (!flags.json.empty() && !json_out) RETURN_IF_ERROR(WriteFile(flags.json, json));
  if (flags.svg.empty()) return absl::OkStatus();
  for (const NamedPlot& plot : plots) {
    RETURN_IF_ERROR(WriteFile(PlotFile(flags, plot.name), PlotSvg(plot.plot)));
  }
  return absl::OkStatus();
}

// What every address says, which must be the same model; of its context lengths the shortest.
absl::StatusOr<v1::ModelInfoResponse> AskModel(const std::vector<std::string>& addresses,
                                               BenchStreams& streams, BenchInterrupt& interrupt) {
  v1::ModelInfoResponse common;
  for (size_t i = 0; i < addresses.size(); ++i) {
    absl::StatusOr<v1::ModelInfoResponse> info = streams.ModelInfo(i, interrupt);
    if (!info.ok()) return Prefixed(info.status(), addresses[i]);
    if (info->vocabulary_size() == 0 || info->context_length() == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(addresses[i], ": the server's model has a vocabulary of ",
                       info->vocabulary_size(), " and a context of ", info->context_length()));
    }
    if (i == 0) common = *info;
    if (info->vocabulary_size() != common.vocabulary_size()) {
      return absl::FailedPreconditionError(absl::StrCat(addresses[0], " serves ", common.model(),
                                                        ", ", addresses[i], " serves ",
                                                        info->model(), ": another vocabulary"));
    }
    common.set_context_length(std::min(common.context_length(), info->context_length()));
  }
  return common;
}

RequestShape ShapeOf(const BenchPlan& plan, const v1::ModelInfoResponse& info) {
  RequestShape shape;
  shape.seed = plan.seed;
  shape.sharegpt = plan.sharegpt;
  shape.prompt_tokens =
      plan.mode == BenchMode::kSweep ? plan.sweep_contexts[0] : plan.prompt_tokens;
  shape.output_tokens = plan.output_tokens;
  shape.mix = plan.mix;
  shape.vocabulary = info.vocabulary_size();
  shape.context_length = info.context_length();
  return shape;
}

// What the server's status says, if the run file leads to it; an address says nothing of slots.
SweepLimits LimitsOf(const PublicTarget& target, const v1::ModelInfoResponse& info) {
  SweepLimits limits;
  limits.context_length = info.context_length();
  if (!target.connect.empty()) return limits;
  absl::StatusOr<AdminClient> admin = ConnectAdmin({target.run_file, "", ""});
  if (!admin.ok()) return limits;
  const absl::StatusOr<v1::StatusResponse> status = admin->Status(kStatusTimeout);
  if (status.ok()) AddStatus(*status, &limits);
  return limits;
}

struct Measured {
  std::string text;
  std::string json;
  std::vector<NamedPlot> plots;
  int exit_code = kExitOk;
};

Measured Report(const SweepResult& result) {
  Measured measured{SweepText(result), SweepJson(result), SweepPlots(result), kExitOk};
  bool any = false;
  for (const SweepPoint& point : result.points) any = any || point.fits;
  if (!any) measured.exit_code = 1;
  if (result.interrupted) measured.exit_code = kExitInterrupted;
  return measured;
}

Measured Report(const BenchResult& result) {
  Measured measured{BenchText(result), BenchJson(result), BenchPlots(result), kExitOk};
  for (const BenchCounts& counts : result.addresses) {
    if (counts.failed > 0) measured.exit_code = 1;
  }
  if (result.interrupted) measured.exit_code = kExitInterrupted;
  return measured;
}

absl::StatusOr<Measured> Measure(const BenchOptions& options, const BenchPlan& plan,
                                 const std::vector<std::string>& addresses,
                                 BenchInterrupt& interrupt) {
  BenchStreams streams(addresses, plan.timeout_ms);
  ASSIGN_OR_RETURN(const v1::ModelInfoResponse info, AskModel(addresses, streams, interrupt));
  const RequestShape shape = ShapeOf(plan, info);
  RETURN_IF_ERROR(WarmUp(plan, shape, streams, interrupt));
  if (plan.mode == BenchMode::kSweep) {
    BenchSweep sweep(plan, shape, streams, interrupt);
    const SweepLimits limits = LimitsOf(options.target, info);
    SweepResult result = sweep.Run(limits);
    result.load_s = limits.load_s;
    result.address = addresses[0];
    result.model = info.model();
    return Report(result);
  }
  BenchRun run(plan, shape, streams, interrupt);
  BenchResult result = run.Run();
  result.model = info.model();
  for (size_t i = 0; i < addresses.size(); ++i) result.addresses[i].address = addresses[i];
  return Report(result);
}

int RunBench(const BenchOptions& options) {
  // Before gRPC starts threads.
  BenchInterrupt interrupt;
  const absl::StatusOr<BenchPlan> plan = MakeBenchPlan(options.flags);
  if (!plan.ok()) return Fail(plan.status(), kExitUsage);
  const absl::Status writable = CheckFiles(options.flags, plan->mode);
  if (!writable.ok()) return Fail(writable, kExitUsage);
  const absl::StatusOr<std::vector<std::string>> addresses = Addresses(options.target);
  if (!addresses.ok()) return Fail(addresses.status(), kExitUsage);
  if (plan->mode == BenchMode::kSweep && addresses->size() > 1) {
    return Fail(absl::InvalidArgumentError(absl::StrCat("--connect ", options.target.connect,
                                                        ": one address only with --sweep")),
                kExitUsage);
  }
  const absl::StatusOr<Measured> measured = Measure(options, *plan, *addresses, interrupt);
  if (!measured.ok()) {
    return Fail(Prefixed(measured.status(), "bench"), interrupt.Seen() ? kExitInterrupted : 1);
  }
  const absl::Status published =
      Publish(options.flags, measured->text, measured->json, measured->plots);
  return published.ok() ? measured->exit_code : Fail(published, 1);
}

}  // namespace

void AddBench(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand(
      "bench", "Measure time to first token, time between tokens and tokens per second");
  AddPublicFlags(*command, context, &options->target);
  command->get_option("--connect")
      ->description(
          "HOST:PORT of the public listener, or several with commas between (default: as "
          "the run file says)");
  AddBenchFlags(*command, &options->flags);
  command->callback([=] { *exit_code = RunBench(*options); });
}

}  // namespace pergola
