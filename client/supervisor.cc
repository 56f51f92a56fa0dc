#include "client/supervisor.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/files.h"

namespace pergola {
namespace {

// Nothing in the loop is more urgent than this; signals, exits and output wake it at once.
constexpr std::chrono::milliseconds kTick{50};
// Reading a tokenizer and binding two ports takes a second; a coordinator that needs a minute
// hangs.
constexpr std::chrono::seconds kCoordinatorStart{60};
// mpirun passes a signal on to its ranks within 1 to 2 s (measured); then it is killed.
constexpr std::chrono::seconds kGroupEnd{10};
// A coordinator whose group is not there cannot finish anything.
constexpr std::chrono::seconds kCoordinatorEndIdle{2};
// Beyond its own drain, for closing listeners.
constexpr std::chrono::seconds kCoordinatorEndExtra{5};
constexpr std::chrono::seconds kStraysEnd{5};
constexpr size_t kMaxCoordinatorFileBytes = 64 << 10;

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&set, signal);
  return set;
}

}  // namespace

Supervisor::Supervisor(SupervisorOptions options)
    : options_(std::move(options)), progress_(options_.terminal) {
  coordinator_.name = "coordinator";
  group_.name = "group";
}

Supervisor::~Supervisor() {
  if (signal_fd_ >= 0) close(signal_fd_);
}

int Supervisor::Run() {
  begun_ = Clock::now();
  const absl::Status prepared = Prepare();
  if (!prepared.ok()) {
    Say(std::string(prepared.message()));
    return 1;
  }
  coordinator_.start_at = begun_;
  while (!exit_code_.has_value()) {
    const Time now = Clock::now();
    StartWhatIsDue(now);
    ReadCoordinatorFile(now);
    WatchLoading(now);
    WaitForEvents(kTick);
    ReadSignals();
    Reap();
    if (signals_seen_ > 0) End(kExitOk);
  }
  Shutdown();
  return *exit_code_;
}

absl::Status Supervisor::Prepare() {
  const sigset_t handled = HandledSignals();
  pthread_sigmask(SIG_BLOCK, &handled, nullptr);
  // A closed terminal must not end us before our children.
  signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signal_fd_ < 0) {
    return absl::UnavailableError(absl::StrCat("cannot watch signals: ", strerror(errno)));
  }
  // Ranks whose mpirun was killed become our children, so that we can end them too.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  run_.model = options_.group.model;
  run_.token_file = options_.coordinator.token_file;
  run_.up_pid = getpid();
  return absl::OkStatus();
}

void Supervisor::StartWhatIsDue(Time now) {
  if (coordinator_.start_at.has_value() && now >= *coordinator_.start_at) StartCoordinator(now);
  const bool due = group_.start_at.has_value() && now >= *group_.start_at;
  if (!group_.process.running() && group_.started != Time{}) {
    // What the last group left behind must be gone before the next begins.
    if (KillStrays()) return;
  }
  if (due && coordinator_up_) StartGroup(now);
}

void Supervisor::StartCoordinator(Time now) {
  coordinator_.start_at.reset();
  coordinator_.started = now;
  coordinator_.output = GroupOutput();
  coordinator_up_ = false;
  coordinator_.policy.Started();
  unlink(options_.coordinator.run_file.c_str());
  const absl::Status started =
      coordinator_.process.Start(CoordinatorCommand(options_.coordinator), options_.environment);
  if (started.ok()) return;
  Say(std::string(started.message()));
  coordinator_.start_at = coordinator_.policy.Died(now, 1);
  if (!coordinator_.start_at.has_value()) End(1);
}

void Supervisor::ReadCoordinatorFile(Time now) {
  if (!coordinator_.process.running() || coordinator_up_) return;
  const absl::StatusOr<std::string> text =
      ReadSmallFile(options_.coordinator.run_file, kMaxCoordinatorFileBytes);
  if (text.ok()) {
    // A file that does not parse yet is being written.
    const absl::StatusOr<CoordinatorFile> file = CoordinatorFileFromJson(*text);
    if (file.ok() && file->pid == coordinator_.process.pid()) return CoordinatorIsUp(*file, now);
  }
  if (now - coordinator_.started > kCoordinatorStart) {
    Say(absl::StrCat("the coordinator has not said where it listens within ",
                     kCoordinatorStart.count(), " s"));
    coordinator_.process.Signal(SIGKILL);
  }
}

void Supervisor::CoordinatorIsUp(const CoordinatorFile& file, Time now) {
  coordinator_up_ = true;
  coordinator_ever_up_ = true;
  coordinator_.policy.Healthy(now);
  // Its successor takes the same ports, so that clients and ranks find it where it was.
  options_.coordinator.listen = file.public_address;
  options_.coordinator.internal_listen = file.internal_address;
  run_.public_address = file.public_address;
  run_.internal_address = DialAddress(file.internal_address);
  run_.coordinator_pid = file.pid;
  std::string dial = run_.internal_address;
  const absl::StatusOr<HostPort> bound = ParseHostPort(file.internal_address);
  if (!options_.dial_host.empty() && bound.ok()) {
    dial = JoinHostPort(options_.dial_host, bound->port);
  }
  options_.group.coordinator_address = dial;
  WriteRunFile();
  Say(absl::StrFormat("coordinator at %s, internal listener at %s, pid %d", file.public_address,
                      file.internal_address, file.pid));
  if (!group_.process.running() && !group_.start_at.has_value()) group_.start_at = now;
  monitor_ =
      std::make_unique<GroupMonitor>(run_.public_address, run_.internal_address, options_.token);
}

void Supervisor::StartGroup(Time now) {
  group_.start_at.reset();
  group_.started = now;
  group_.output = GroupOutput();
  group_.policy.Started();
  const absl::StatusOr<std::vector<std::string>> command = GroupCommand(options_.group);
  if (!command.ok()) {
    Say(std::string(command.status().message()));
    return End(kExitUsage);
  }
  const std::string line = ShellLine(*command);
  if (line != printed_group_line_) Say(line);
  printed_group_line_ = line;
  std::vector<std::string> environment = options_.environment;
  environment.push_back(absl::StrCat(kJoinTokenVariable, "=", options_.token));
  const absl::Status started = group_.process.Start(*command, environment);
  if (!started.ok()) {
    Say(std::string(started.message()));
    group_.start_at = group_.policy.Died(now, 1);
    if (!group_.start_at.has_value()) End(1);
    return;
  }
  run_.mpirun_pid = group_.process.pid();
  WriteRunFile();
  monitor_ =
      std::make_unique<GroupMonitor>(run_.public_address, run_.internal_address, options_.token);
}

void Supervisor::WatchLoading(Time now) {
  if (monitor_ == nullptr || !group_.process.running() || !coordinator_up_) return;
  const GroupMonitor::View view = monitor_->Look();
  for (const v1::GroupStatus& group : view.status.groups()) {
    if (group.state() != v1::GROUP_STATE_LOADING) continue;
    std::fputs(progress_.Update(group.progress(), now).c_str(), stderr);
  }
  if (!view.ready) return;
  group_.policy.Healthy(now);
  monitor_.reset();
  std::fputs(progress_.Interrupt().c_str(), stderr);
  std::fprintf(
      stdout, "READY %s (%s, tp %d x pp %d, %.1f s)\n", DialAddress(run_.public_address).c_str(),
      view.status.model().c_str(), options_.group.tensor_parallel, options_.group.pipeline_parallel,
      std::chrono::duration<double>(now - std::max(group_.started, coordinator_.started)).count());
  std::fflush(stdout);
}

void Supervisor::WaitForEvents(std::chrono::milliseconds longest) {
  pollfd watched[] = {{signal_fd_, POLLIN, 0},
                      {coordinator_.process.output_fd(), POLLIN, 0},
                      {group_.process.output_fd(), POLLIN, 0}};
  // A negative descriptor is skipped by poll().
  poll(watched, 3, static_cast<int>(longest.count()));
  ShowOutput(coordinator_, /*ended=*/false);
  ShowOutput(group_, /*ended=*/false);
}

void Supervisor::ReadSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    if (info.ssi_signo != SIGCHLD) ++signals_seen_;
  }
}

void Supervisor::Reap() {
  int wait_status = 0;
  pid_t pid = 0;
  while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0) {
    if (pid == coordinator_.process.pid()) {
      Died(coordinator_, wait_status);
    } else if (pid == group_.process.pid()) {
      Died(group_, wait_status);
    }
  }
}

void Supervisor::Died(Member& member, int wait_status) {
  member.process.Collected();
  ShowOutput(member, /*ended=*/true);
  const bool is_coordinator = &member == &coordinator_;
  (is_coordinator ? run_.coordinator_pid : run_.mpirun_pid) = 0;
  if (is_coordinator) coordinator_up_ = false;
  monitor_.reset();
  if (shutting_down_ || exit_code_.has_value()) return;
  int code = ExitCodeOf(wait_status);
  if (is_coordinator && code == kExitOk) {
    Say("the coordinator was drained");
    return End(kExitOk);
  }
  // Once it has listened, its flags are right; the port that is taken now may come free.
  if (is_coordinator && coordinator_ever_up_ && code == kExitUsage) code = 1;
  const Time now = Clock::now();
  member.start_at = member.policy.Died(now, code);
  if (!member.start_at.has_value()) {
    const std::string reason = member.output.reason();
    Say(absl::StrCat("the ", member.name, " cannot start (", DescribeExit(wait_status), ")",
                     reason.empty() ? "" : ": ", reason));
    return End(code == kExitUsage ? kExitUsage : 1);
  }
  Say(absl::StrFormat("the %s ended with %s; starting it again in %.1f s", member.name,
                      DescribeExit(wait_status),
                      std::chrono::duration<double>(*member.start_at - now).count()));
  WriteRunFile();
}

void Supervisor::ShowOutput(Member& member, bool ended) {
  const std::vector<std::string> lines =
      ended ? member.process.Close() : member.process.ReadLines();
  for (const std::string& line : lines) {
    for (const std::string& shown : member.output.Take(line)) ShowLine(shown);
  }
  if (!ended) return;
  for (const std::string& shown : member.output.Finish()) ShowLine(shown);
}

bool Supervisor::KillStrays() {
  bool any = false;
  for (const pid_t pid : ChildrenOfThisProcess()) {
    if (pid == coordinator_.process.pid() || pid == group_.process.pid()) continue;
    kill(pid, SIGKILL);
    any = true;
  }
  if (any) Reap();
  return any;
}

void Supervisor::Shutdown() {
  const bool can_finish = group_.process.running() && coordinator_up_ && monitor_ == nullptr;
  shutting_down_ = true;
  monitor_.reset();
  signals_seen_ = 0;
  coordinator_.process.Signal(SIGTERM);
  const std::chrono::milliseconds drain =
      std::chrono::milliseconds(options_.coordinator.drain_timeout_ms) + kCoordinatorEndExtra;
  WaitUntilGone(coordinator_, can_finish ? drain : kCoordinatorEndIdle);
  group_.process.Signal(SIGTERM);
  WaitUntilGone(group_, kGroupEnd);
  const Time until = Clock::now() + kStraysEnd;
  while (KillStrays() && Clock::now() < until) WaitForEvents(kTick);
  unlink(options_.run_file.c_str());
  unlink(options_.coordinator.run_file.c_str());
  unlink(options_.coordinator.token_file.c_str());
}

void Supervisor::WaitUntilGone(Member& member, std::chrono::milliseconds longest) {
  const Time until = Clock::now() + longest;
  while (member.process.running()) {
    // A second Ctrl-C asks for no more patience.
    if (Clock::now() >= until || signals_seen_ > 0) member.process.Signal(SIGKILL);
    WaitForEvents(kTick);
    ReadSignals();
    Reap();
  }
}

void Supervisor::WriteRunFile() {
  const absl::Status written = WritePrivateFile(options_.run_file, RunFileToJson(run_));
  if (!written.ok()) Say(std::string(written.message()));
}

void Supervisor::End(int exit_code) {
  if (!exit_code_.has_value()) exit_code_ = exit_code;
}

void Supervisor::Say(const std::string& text) {
  ShowLine("pergola: " + text);
}

void Supervisor::ShowLine(const std::string& line) {
  std::fprintf(stderr, "%s%s\n", progress_.Interrupt().c_str(), line.c_str());
}

}  // namespace pergola
