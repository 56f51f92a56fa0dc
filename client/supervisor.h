// Keeps one coordinator and its groups alive until told to stop, and leaves nothing behind. Each
// group is an MPI job of its own, started again alone. One
// thread owns everything here; the monitor's thread only looks. It waits in poll() for signals,
// output and the next thing that is due.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/child_process.h"
#include "client/group_monitor.h"
#include "client/group_output.h"
#include "client/launch_line.h"
#include "client/progress_line.h"
#include "client/restart_policy.h"
#include "client/run_file.h"

namespace pergola {

struct SupervisorOptions {
  CoordinatorOptions coordinator;    // its run_file is the one `up` reads addresses from
  std::vector<GroupOptions> groups;  // at least one; coordinator_address comes from that file
  std::string dial_host;  // host by which ranks reach the internal listener; empty: as it is bound
  std::string run_file;
  std::string token;
  std::vector<std::string> environment;  // of the children; the group's gets the token added
  bool terminal = false;                 // whether standard error is one
};

class Supervisor {
 public:
  explicit Supervisor(SupervisorOptions options);
  ~Supervisor();

  // Returns the exit code: 0 after a signal or a drain, 2 if a child said that trying again cannot
  // help, 1 if one never came up. Blocks SIGINT, SIGTERM, SIGHUP and SIGCHLD in the calling thread
  // and leaves them blocked.
  int Run();

 private:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  struct Member {
    std::string name;    // as it is spoken of
    std::string prefix;  // of each line of its output
    ChildProcess process;
    RestartPolicy policy;
    GroupOutput output;
    std::optional<Time> start_at;  // when it is due, while it does not run
    Time started{};
  };

  struct Group : Member {
    GroupOptions options;
    size_t number = 0;
    std::string printed_line;
    uint64_t epoch = 0;    // the last one in which it served
    bool serving = false;  // it has attached since it was started
    bool given_up = false;
  };

  absl::Status Prepare();
  void StartCoordinator(Time now);
  void StartGroup(Group& group, Time now);
  void StartWhatIsDue(Time now);
  void ReadCoordinatorFile(Time now);
  void CoordinatorIsUp(const CoordinatorFile& file, Time now);
  void WatchLoading(Time now);
  void NoteServing(const v1::StatusResponse& status, Time now);
  void SayReady(const Group& group, const std::string& model, Time now);
  void Watch();
  bool Awaited() const;  // whether a group runs that does not serve yet
  size_t Serving() const;
  void WaitForEvents(std::chrono::milliseconds longest);
  void ReadSignals();
  void Reap();
  void CoordinatorDied(int wait_status);
  void GroupDied(Group& group, int wait_status);
  void StartAgain(Member& member, int wait_status, int exit_code);
  void CannotStart(const Member& member, int wait_status);
  void ShowOutput(Member& member, bool ended);
  bool KillStrays();
  void Shutdown();
  void WaitUntilGone(Member& member, Time until);
  void WriteRunFile();
  void End(int exit_code);
  void Say(const std::string& text);
  void ShowLine(const std::string& line);

  SupervisorOptions options_;
  RunFile run_;
  Member coordinator_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::unique_ptr<GroupMonitor> monitor_;  // while a group is awaited
  ProgressLine progress_;
  int signal_fd_ = -1;
  int signals_seen_ = 0;
  bool coordinator_up_ = false;  // this incarnation has said where it listens
  bool coordinator_ever_up_ = false;
  bool said_ready_ = false;  // since the last time that no group served
  bool shutting_down_ = false;
  std::optional<int> exit_code_;  // set: end
  Time begun_{};
};

}  // namespace pergola
