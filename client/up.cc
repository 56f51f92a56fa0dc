// `pergola up`: checks what it was given, then hands over to the supervisor.
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/match.h"
#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/files.h"
#include "client/join_token.h"
#include "client/launch_line.h"
#include "client/run_file.h"
#include "client/supervisor.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/shape_spec.h"
#include "model/weight_format.h"

namespace pergola {
namespace {

struct UpOptions {
  std::string model;
  int tp = 1;
  int pp = 1;
  int groups = 1;
  int threads = 0;
  std::string dtype = "auto";
  std::string device = "auto";
  std::string devices;
  std::string hosts;
  std::string listen = "127.0.0.1:50051";
  std::string internal_listen;
  std::string http_listen;
  std::string run_file;
  bool dry_run = false;
  std::string trace_dir;
  std::string log_level = "info";
  uint32_t drain_timeout_ms = 30000;
  std::vector<std::string> worker_arguments;
  std::vector<std::string> coordinator_arguments;
};

// Each group costs a whole model; who has more machines than this starts them by themselves.
constexpr int kMaxGroups = 16;

// Those this process may run on; none if there are more than the C library's fixed set holds.
std::vector<int> UsableCpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

absl::StatusOr<std::string> AbsoluteModel(const std::string& model) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(model, error);
  if (error) {
    return absl::NotFoundError(absl::StrCat("model ", model, ": ", error.message()));
  }
  return path.string();
}

// What every rank would refuse after it was started: headers that do not hold, or a layout the
// model's shape cannot take, or a format its matrices cannot. Reads headers only.
absl::Status CheckModel(const std::string& model, const UpOptions& options) {
  ASSIGN_OR_RETURN(const WeightFormat format, ParseWeightFormat(options.dtype));
  if (options.device == "cpu") RETURN_IF_ERROR(CheckOnCpu(format));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(model));
  ASSIGN_OR_RETURN(ShapeSpec shape, ShapeOfCheckpoint(*checkpoint));
  RETURN_IF_ERROR(WithWeightFormat(std::move(shape), format).status());
  return MakeLayout(checkpoint->spec(), options.tp, options.pp, 0).status();
}

const Host* FirstRemote(const std::vector<Host>& hosts, const std::string& own_host_name) {
  for (const Host& host : hosts) {
    if (!IsLocalHost(host.name, own_host_name)) return &host;
  }
  return nullptr;
}

// Fills in the listeners, and the host by which ranks dial where that differs from what is bound.
absl::Status ChooseListeners(const UpOptions& options, const Host* remote,
                             SupervisorOptions& supervisor) {
  CoordinatorOptions& coordinator = supervisor.coordinator;
  coordinator.listen = options.listen;
  absl::StatusOr<HostPort> parsed = ParseHostPort(options.listen);
  if (!parsed.ok()) return Prefixed(parsed.status(), "--listen");
  coordinator.http_listen = options.http_listen;
  if (!options.http_listen.empty()) {
    parsed = ParseHostPort(options.http_listen);
    if (!parsed.ok()) return Prefixed(parsed.status(), "--http-listen");
  }
  coordinator.internal_listen = options.internal_listen;
  if (!options.internal_listen.empty()) {
    parsed = ParseHostPort(options.internal_listen);
    if (!parsed.ok()) return Prefixed(parsed.status(), "--internal-listen");
    const bool any = parsed->host == "0.0.0.0" || parsed->host == "::";
    if (!any || remote == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(supervisor.dial_host, LocalAddressTowards(remote->name));
    return absl::OkStatus();
  }
  std::string host = "127.0.0.1";
  if (remote != nullptr) {
    ASSIGN_OR_RETURN(host, LocalAddressTowards(remote->name));
  }
  coordinator.internal_listen = JoinHostPort(host, 0);
  return absl::OkStatus();
}

absl::StatusOr<SupervisorOptions> Plan(const UpOptions& options, const Context& context) {
  SupervisorOptions supervisor;
  ASSIGN_OR_RETURN(const std::string model, AbsoluteModel(options.model));
  GroupOptions group;
  group.model = model;
  group.tensor_parallel = options.tp;
  group.pipeline_parallel = options.pp;
  group.threads = options.threads;
  group.dtype = options.dtype;
  group.device = options.device;
  group.devices = options.devices;
  ASSIGN_OR_RETURN(group.hosts, ParseHosts(options.hosts));
  const Host* remote = FirstRemote(group.hosts, context.host_name);
  group.root = context.root;
  group.log_level = options.log_level;
  group.worker_arguments = options.worker_arguments;
  const absl::StatusOr<std::string> mpirun = FindProgram("mpirun", context.search_path);
  if (!mpirun.ok()) {
    return absl::NotFoundError(absl::StrCat(mpirun.status().message(),
                                            "; install Open MPI (apt-get install openmpi-bin)"));
  }
  group.mpirun = *mpirun;
  ASSIGN_OR_RETURN(group.worker, FindProgram(context.binary_dir + "/pergola-worker", ""));
  CoordinatorOptions& coordinator = supervisor.coordinator;
  coordinator.model = model;
  ASSIGN_OR_RETURN(coordinator.program,
                   FindProgram(context.binary_dir + "/pergola-coordinator", ""));
  coordinator.drain_timeout_ms = options.drain_timeout_ms;
  coordinator.log_level = options.log_level;
  coordinator.arguments = options.coordinator_arguments;
  if (!options.trace_dir.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options.trace_dir, error);
    const std::filesystem::path trace = std::filesystem::canonical(options.trace_dir, error);
    if (error) {
      return absl::NotFoundError(
          absl::StrCat("--trace ", options.trace_dir, ": ", error.message()));
    }
    group.trace_file = trace.string() + "/worker.json";
    coordinator.trace_dir = trace.string();
  }
  RETURN_IF_ERROR(ChooseListeners(options, remote, supervisor));
  // The same check as at the launch, before anything is started.
  group.coordinator_address = coordinator.internal_listen;
  ASSIGN_OR_RETURN(supervisor.groups, DealGroups(group, options.groups, UsableCpus()));
  for (GroupOptions& dealt : supervisor.groups) {
    dealt.remote = FirstRemote(dealt.hosts, context.host_name) != nullptr;
    RETURN_IF_ERROR(GroupCommand(dealt).status());
  }
  RETURN_IF_ERROR(CheckModel(model, options));
  supervisor.run_file = options.run_file;
  supervisor.environment = context.environment;
  supervisor.terminal = context.stderr_is_terminal;
  return supervisor;
}

// A run file whose `up` still lives belongs to it.
absl::Status CheckNotRunning(const std::string& run_file) {
  const absl::StatusOr<RunFile> run = ReadRunFile(run_file);
  if (!run.ok() || run->up_pid <= 0 || kill(run->up_pid, 0) != 0) return absl::OkStatus();
  const absl::StatusOr<std::string> name =
      ReadSmallFile(absl::StrCat("/proc/", run->up_pid, "/comm"), 64);
  if (!name.ok() || *name != "pergola\n") return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("pergola runs already with run file ", run_file,
                                               " (pid ", run->up_pid,
                                               "); end it, or give another --run-file"));
}

absl::Status MakePrivateFiles(const Context& context, SupervisorOptions& supervisor) {
  RETURN_IF_ERROR(CheckNotRunning(supervisor.run_file));
  RETURN_IF_ERROR(MakePrivateDirectory(context.runtime_dir));
  const std::string base = absl::StrCat(context.runtime_dir, "/");
  supervisor.coordinator.token_file = absl::StrCat(base, "token-", getpid());
  supervisor.coordinator.run_file = absl::StrCat(base, "coordinator-", getpid(), ".json");
  ASSIGN_OR_RETURN(supervisor.token, MakeJoinToken());
  return WritePrivateFile(supervisor.coordinator.token_file, supervisor.token + "\n");
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "pergola: %s\n", std::string(status.message()).c_str());
  return kExitUsage;
}

int PrintLines(const SupervisorOptions& supervisor) {
  const absl::StatusOr<HostPort> bound = ParseHostPort(supervisor.groups[0].coordinator_address);
  if (bound.ok() && bound->port == 0) {
    std::fprintf(stderr,
                 "pergola: port 0 below stands for one chosen at the start; --internal-listen "
                 "fixes it\n");
  }
  for (GroupOptions group : supervisor.groups) {
    if (bound.ok() && !supervisor.dial_host.empty()) {
      group.coordinator_address = JoinHostPort(supervisor.dial_host, bound->port);
    }
    const absl::StatusOr<std::vector<std::string>> command = GroupCommand(group);
    if (!command.ok()) return Fail(command.status());
    std::fprintf(stdout, "%s\n", ShellLine(*command).c_str());
  }
  return kExitOk;
}

int Up(const UpOptions& options, const Context& context) {
  absl::StatusOr<SupervisorOptions> supervisor = Plan(options, context);
  if (!supervisor.ok()) return Fail(supervisor.status());
  if (options.dry_run) return PrintLines(*supervisor);
  const absl::Status made = MakePrivateFiles(context, *supervisor);
  if (!made.ok()) return Fail(made);
  return Supervisor(*std::move(supervisor)).Run();
}

void AddLayoutFlags(CLI::App& command, UpOptions& options) {
  command.add_option("--tp", options.tp, "ranks per stage (tensor parallel)")
      ->capture_default_str();
  command.add_option("--pp", options.pp, "stages (pipeline parallel)")->capture_default_str();
  AddNumber(command, "--groups", &options.groups, {1, kMaxGroups},
            "groups of this layout, each with the whole model; they serve one queue")
      ->capture_default_str();
  AddNumber(command, "--threads", &options.threads, {0, 1024},
            "threads per rank (default 0: cores / ranks on the node, of all groups)");
  command
      .add_option("--dtype", options.dtype,
                  "hold weight matrices as f32, bf16, f16, int8, fp8 (GPUs only) or int4, "
                  "converted at load; auto: "
                  "as the checkpoint has them (docs/quantization.md)")
      ->capture_default_str();
  command.add_option("--device", options.device, "auto (a GPU if there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--devices", options.devices,
                     "GPUs of a node for its ranks in turn, as 0,1,2,3 (default: all)");
  command.add_option(
      "--hosts", options.hosts,
      "NAME:SLOTS,... machines, dealt evenly to the groups; --pp must be a multiple of "
      "the number of a group's (default: this machine)");
}

}  // namespace

void AddUp(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<UpOptions>();
  options->run_file = DefaultRunFile(context.runtime_dir);
  CLI::App* command = app.add_subcommand(
      "up", "Start a coordinator and groups of workers, keep them alive, stop them on Ctrl-C");
  command
      ->add_option("MODEL", options->model,
                   "GGUF file or Hugging Face directory, readable at this path on every node")
      ->required();
  AddLayoutFlags(*command, *options);
  command->add_option("--listen", options->listen, "HOST:PORT of the public listener; port 0: any")
      ->capture_default_str();
  command->add_option("--internal-listen", options->internal_listen,
                      "HOST:PORT of the internal listener (default: 127.0.0.1:0, with remote "
                      "hosts the address that routes to them)");
  command->add_option("--http-listen", options->http_listen,
                      "HOST:PORT of /metrics and /healthz, port 0: any (default: none)");
  command->add_option("--run-file", options->run_file, "where to write addresses and pids")
      ->capture_default_str();
  command->add_flag("--dry-run", options->dry_run, "only print the mpirun line");
  command->add_option("--trace", options->trace_dir,
                      "directory for Chrome/Perfetto traces (default: no trace)");
  command->add_option("--log-level", options->log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  AddNumber(*command, "--drain-timeout-ms", &options->drain_timeout_ms, {0, 86'400'000},
            "milliseconds the running requests may take after Ctrl-C or SIGTERM")
      ->capture_default_str();
  command
      ->add_option("--worker-arg", options->worker_arguments,
                   "one more argument for every pergola-worker; may come often, write "
                   "--worker-arg=--flag")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command
      ->add_option("--coordinator-arg", options->coordinator_arguments,
                   "one more argument for pergola-coordinator; may come often")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->callback([=, &context] { *exit_code = Up(*options, context); });
}

}  // namespace pergola
