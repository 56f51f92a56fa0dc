// One rank of a group, from its flags to its end: forms the group, loads, attaches and steps. The
// only place where MPI, gRPC and the executor meet.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "kernels/cpu_stream.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/text_parts.h"
#include "worker/comm/device_links.h"
#include "worker/comm/group.h"
#include "worker/comm/mpi_transport.h"
#include "worker/comm/shm_communicator.h"
#include "worker/comm/wait_board.h"
#include "worker/comm/watchdog.h"
#include "worker/step/coordinator_link.h"
#include "worker/step/internal_client.h"
#include "worker/step/results_link.h"
#include "worker/step/stage_executor.h"
#include "worker/step/step_loop.h"
#include "worker/step/trace.h"
#include "worker/worker_options.h"

namespace pergola {

class Rank {
 public:
  // `provided`: what MPI_Init_thread gave.
  Rank(const WorkerOptions& options, const std::string& join_token, int provided);

  // Runs until the group ends and returns the process's exit code: every error has been logged and
  // reported once. The caller ends the process at once, without MPI_Finalize, which could wait for
  // ranks that never come.
  int Run();

 private:
  // Each part of the start: an error here is the user's, and the same or harmless on the other
  // ranks.
  absl::Status Open();
  absl::Status OpenShared();
  // From here on the first rank with an error ends the job by itself.
  absl::Status Load();
  absl::Status OpenGpu();
  absl::Status OpenLinks();
  Stream& stream() { return gpu_ != nullptr ? *gpu_ : *host_; }
  absl::Status Attach();
  absl::Status Step();

  // Whether all ranks got through `mine`; the lowest rank that did not logs and reports. 0 or the
  // exit code.
  int Agree(const absl::Status& mine);
  // Logs and reports, and returns the exit code.
  int Fail(const absl::Status& status);
  int ExitCodeOf(const absl::Status& status);
  void ReportFault(const std::string& operation, const std::string& text);
  void OnOverdue(const Wait& wait, int64_t waited_ms);

  const WorkerOptions options_;
  const int provided_;
  InternalClient client_;
  WaitBoard board_;
  std::unique_ptr<Group> group_;
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<CoordinatorLink> coordinator_;  // rank 0
  std::unique_ptr<ResultsLink> results_;          // first rank of the last stage
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<TextParts> text_;  // rank 0
  RankLayout layout_;
  int threads_ = 1;
  bool oversubscribed_ = false;
  std::unique_ptr<MpiTransport> transport_;
  std::unique_ptr<ShmCommunicator> communicator_;
  std::unique_ptr<CpuStream> host_;
  std::unique_ptr<Stream> gpu_;         // null: the rank computes on the CPU
  int gpu_ranks_ = 1;                   // ranks that share its GPU
  std::unique_ptr<DeviceLinks> links_;  // null: through the host
  std::unique_ptr<Trace> trace_;
  std::unique_ptr<StageExecutor> executor_;
  std::unique_ptr<StepLoop> loop_;
  std::atomic<const StepLoop*> loop_published_{nullptr};  // for the watchdog's thread
  bool attached_ = false;  // Hello was made: errors are no longer the user's
};

}  // namespace pergola
