#include "client/supervisor.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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
  coordinator_.name = "the coordinator";
  const bool alone = options_.groups.size() == 1;
  for (const GroupOptions& wanted : options_.groups) {
    auto group = std::make_unique<Group>();
    group->name = alone ? "the group" : wanted.name;
    if (!alone) group->prefix = wanted.name + ": ";
    group->number = groups_.size();
    group->options = wanted;
    run_.groups.push_back({wanted.name, 0});
    groups_.push_back(std::move(group));
  }
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
  run_.model = options_.groups[0].model;
  run_.token_file = options_.coordinator.token_file;
  run_.up_pid = getpid();
  return absl::OkStatus();
}

void Supervisor::StartWhatIsDue(Time now) {
  if (coordinator_.start_at.has_value() && now >= *coordinator_.start_at) StartCoordinator(now);
  // What a lost group left behind must be gone before it begins again.
  for (const auto& group : groups_) {
    if (!group->process.running() && group->started != Time{} && KillStrays()) return;
  }
  for (const auto& group : groups_) {
    const bool due = group->start_at.has_value() && now >= *group->start_at;
    if (due && coordinator_up_) StartGroup(*group, now);
  }
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
  if (!options_.coordinator.http_listen.empty()) {
    options_.coordinator.http_listen = file.http_address;
  }
  run_.public_address = file.public_address;
  run_.internal_address = DialAddress(file.internal_address);
  run_.http_address = file.http_address.empty() ? "" : DialAddress(file.http_address);
  run_.coordinator_pid = file.pid;
  std::string dial = run_.internal_address;
  const absl::StatusOr<HostPort> bound = ParseHostPort(file.internal_address);
  if (!options_.dial_host.empty() && bound.ok()) {
    dial = JoinHostPort(options_.dial_host, bound->port);
  }
  WriteRunFile();
  const std::string http =
      file.http_address.empty() ? "" : absl::StrCat(", HTTP at ", file.http_address);
  Say(absl::StrFormat("coordinator at %s, internal listener at %s%s, pid %d", file.public_address,
                      file.internal_address, http, file.pid));
  for (const auto& group : groups_) {
    group->options.coordinator_address = dial;
    const bool waits = group->process.running() || group->start_at.has_value();
    if (!waits && !group->given_up) group->start_at = now;
  }
  Watch();
}

// Follows the groups until all that run serve.
void Supervisor::Watch() {
  monitor_ = std::make_unique<GroupMonitor>(run_.public_address, run_.internal_address,
                                            options_.token, /*probe=*/!said_ready_);
}

bool Supervisor::Awaited() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const auto& group) { return group->process.running() && !group->serving; });
}

size_t Supervisor::Serving() const {
  return static_cast<size_t>(std::count_if(groups_.begin(), groups_.end(),
                                           [](const auto& group) { return group->serving; }));
}

void Supervisor::StartGroup(Group& group, Time now) {
  group.start_at.reset();
  group.started = now;
  group.output = GroupOutput();
  group.policy.Started();
  const absl::StatusOr<std::vector<std::string>> command = GroupCommand(group.options);
  if (!command.ok()) {
    Say(std::string(command.status().message()));
    return End(kExitUsage);
  }
  const std::string line = ShellLine(*command);
  if (line != group.printed_line) Say(line);
  group.printed_line = line;
  std::vector<std::string> environment = options_.environment;
  environment.push_back(absl::StrCat(kJoinTokenVariable, "=", options_.token));
  const absl::Status started = group.process.Start(*command, environment, group.options.cpus);
  if (!started.ok()) {
    Say(std::string(started.message()));
    group.start_at = group.policy.Died(now, 1);
    if (!group.start_at.has_value()) End(1);
    return;
  }
  run_.groups[group.number].mpirun_pid = group.process.pid();
  WriteRunFile();
  Watch();
}

void Supervisor::WatchLoading(Time now) {
  if (monitor_ == nullptr || !coordinator_up_) return;
  const GroupMonitor::View view = monitor_->Look();
  for (const v1::GroupStatus& group : view.status.groups()) {
    if (group.state() != v1::GROUP_STATE_LOADING) continue;
    std::fputs(progress_.Update(group.progress(), now).c_str(), stderr);
    break;  // one bar; the next group follows when this one has loaded
  }
  if (!view.ready) return;
  NoteServing(view.status, now);
  if (!Awaited()) monitor_.reset();
}

void Supervisor::NoteServing(const v1::StatusResponse& status, Time now) {
  for (const v1::GroupStatus& seen : status.groups()) {
    if (seen.state() != v1::GROUP_STATE_READY) continue;
    for (const auto& group : groups_) {
      // An epoch that was seen before is the last incarnation's, whose end is noticed late.
      if (group->options.name != seen.name() || group->serving || !group->process.running() ||
          seen.epoch() <= group->epoch) {
        continue;
      }
      group->serving = true;
      group->epoch = seen.epoch();
      group->policy.Healthy(now);
      if (!said_ready_) SayReady(*group, status.model(), now);
      if (groups_.size() > 1) {
        Say(absl::StrFormat("%d of %d groups serve", Serving(), groups_.size()));
      }
    }
  }
}

void Supervisor::SayReady(const Group& group, const std::string& model, Time now) {
  said_ready_ = true;
  std::fputs(progress_.Interrupt().c_str(), stderr);
  std::fprintf(
      stdout, "READY %s (%s, tp %d x pp %d, %.1f s)\n", DialAddress(run_.public_address).c_str(),
      model.c_str(), group.options.tensor_parallel, group.options.pipeline_parallel,
      std::chrono::duration<double>(now - std::max(group.started, coordinator_.started)).count());
  std::fflush(stdout);
}

void Supervisor::WaitForEvents(std::chrono::milliseconds longest) {
  std::vector<pollfd> watched = {{signal_fd_, POLLIN, 0},
                                 {coordinator_.process.output_fd(), POLLIN, 0}};
  for (const auto& group : groups_) watched.push_back({group->process.output_fd(), POLLIN, 0});
  // A negative descriptor is skipped by poll().
  poll(watched.data(), watched.size(), static_cast<int>(longest.count()));
  ShowOutput(coordinator_, /*ended=*/false);
  for (const auto& group : groups_) ShowOutput(*group, /*ended=*/false);
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
    if (pid == coordinator_.process.pid()) CoordinatorDied(wait_status);
    for (const auto& group : groups_) {
      if (pid == group->process.pid()) GroupDied(*group, wait_status);
    }
  }
}

void Supervisor::CoordinatorDied(int wait_status) {
  coordinator_.process.Collected();
  ShowOutput(coordinator_, /*ended=*/true);
  run_.coordinator_pid = 0;
  coordinator_up_ = false;
  said_ready_ = false;
  monitor_.reset();
  for (const auto& group : groups_) group->serving = false;
  if (shutting_down_ || exit_code_.has_value()) return;
  int code = ExitCodeOf(wait_status);
  if (code == kExitOk) {
    Say("the coordinator was drained");
    return End(kExitOk);
  }
  // Once it has listened, its flags are right; the port that is taken now may come free.
  if (coordinator_ever_up_ && code == kExitUsage) code = 1;
  StartAgain(coordinator_, wait_status, code);
  if (coordinator_.start_at.has_value()) return;
  CannotStart(coordinator_, wait_status);
  End(code == kExitUsage ? kExitUsage : 1);
}

void Supervisor::GroupDied(Group& group, int wait_status) {
  group.process.Collected();
  ShowOutput(group, /*ended=*/true);
  run_.groups[group.number].mpirun_pid = 0;
  group.serving = false;
  if (Serving() == 0) said_ready_ = false;
  monitor_.reset();
  if (shutting_down_ || exit_code_.has_value()) return;
  const int code = ExitCodeOf(wait_status);
  StartAgain(group, wait_status, code);
  if (coordinator_up_ && Awaited()) Watch();
  if (group.start_at.has_value()) return;
  CannotStart(group, wait_status);
  if (Serving() == 0) return End(code == kExitUsage ? kExitUsage : 1);
  group.given_up = true;
  Say(absl::StrFormat("%d of %d groups serve on without %s", Serving(), groups_.size(),
                      group.name));
}

void Supervisor::StartAgain(Member& member, int wait_status, int exit_code) {
  const Time now = Clock::now();
  member.start_at = member.policy.Died(now, exit_code);
  WriteRunFile();
  if (!member.start_at.has_value()) return;
  Say(absl::StrFormat("%s ended with %s; starting it again in %.1f s", member.name,
                      DescribeExit(wait_status),
                      std::chrono::duration<double>(*member.start_at - now).count()));
}

void Supervisor::CannotStart(const Member& member, int wait_status) {
  const std::string reason = member.output.reason();
  Say(absl::StrCat(member.name, " cannot start (", DescribeExit(wait_status), ")",
                   reason.empty() ? "" : ": ", reason));
}

void Supervisor::ShowOutput(Member& member, bool ended) {
  const std::vector<std::string> lines =
      ended ? member.process.Close() : member.process.ReadLines();
  for (const std::string& line : lines) {
    for (const std::string& shown : member.output.Take(line)) ShowLine(member.prefix + shown);
  }
  if (!ended) return;
  for (const std::string& shown : member.output.Finish()) ShowLine(member.prefix + shown);
}

bool Supervisor::KillStrays() {
  bool any = false;
  const auto is_ours = [this](pid_t pid) {
    return pid == coordinator_.process.pid() ||
           std::any_of(groups_.begin(), groups_.end(),
                       [pid](const auto& group) { return group->process.pid() == pid; });
  };
  // The ranks of a group that runs are children of its mpirun, not of this process.
  for (const pid_t pid : ChildrenOfThisProcess()) {
    if (is_ours(pid)) continue;
    kill(pid, SIGKILL);
    any = true;
  }
  if (any) Reap();
  return any;
}

void Supervisor::Shutdown() {
  const bool can_finish = coordinator_up_ && Serving() > 0;
  shutting_down_ = true;
  monitor_.reset();
  signals_seen_ = 0;
  coordinator_.process.Signal(SIGTERM);
  const std::chrono::milliseconds drain =
      std::chrono::milliseconds(options_.coordinator.drain_timeout_ms) + kCoordinatorEndExtra;
  WaitUntilGone(coordinator_, Clock::now() + (can_finish ? drain : kCoordinatorEndIdle));
  for (const auto& group : groups_) group->process.Signal(SIGTERM);
  const Time groups_end = Clock::now() + kGroupEnd;
  for (const auto& group : groups_) WaitUntilGone(*group, groups_end);
  const Time until = Clock::now() + kStraysEnd;
  while (KillStrays() && Clock::now() < until) WaitForEvents(kTick);
  unlink(options_.run_file.c_str());
  unlink(options_.coordinator.run_file.c_str());
  unlink(options_.coordinator.token_file.c_str());
}

void Supervisor::WaitUntilGone(Member& member, Time until) {
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
