#include "worker/rank.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/sample.h"
#include "model/byte_source.h"
#include "worker/hello.h"

namespace pergola {
namespace {

int64_t UnixMicroseconds() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// The coordinator gives a plan up after the step timeout; a rank waits longer, so that what is slow
// everywhere is the coordinator's to judge, and a rank's own verdict means that a peer is stuck. At
// least some ticks of rank 0.
int64_t WaitLimitMs(const WorkerOptions& options) {
  return 2 * options.step_timeout_ms + 5 * int64_t{PlanSource::kTickMs};
}

// Errors that the same command would meet again.
bool IsUsage(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kDataLoss:
      return true;
    default:
      return false;
  }
}

// "... layer 3: ..." gives 3; -1: no layer named.
int LayerOf(const std::string& text) {
  int layer = -1;
  const char* place = std::strstr(text.c_str(), "layer ");
  return place != nullptr && std::sscanf(place, "layer %d", &layer) == 1 ? layer : -1;
}

}  // namespace

Rank::Rank(const WorkerOptions& options, const std::string& join_token, int provided)
    : options_(options), provided_(provided), client_(options.coordinator, join_token) {}

int Rank::Run() {
  absl::Status opened = Open();
  // Without a group there is nobody to agree with.
  if (group_ == nullptr) return Fail(opened);
  if (const int code = Agree(opened); code != 0) return code;
  if (const int code = Agree(OpenShared()); code != 0) return code;
  const absl::Status loaded = Load();
  if (!loaded.ok()) return Fail(loaded);
  const absl::Status attached = Attach();
  if (!attached.ok()) return Fail(attached);
  attached_ = true;
  const absl::Status stepped = Step();
  return stepped.ok() ? kExitOk : Fail(stepped);
}

absl::Status Rank::Open() {
  ASSIGN_OR_RETURN(group_,
                   Group::Form(provided_, options_.tensor_parallel, options_.pipeline_parallel));
  const int cores = UsableCores();
  const int ranks = group_->ranks_on_node();
  threads_ = options_.threads > 0 ? options_.threads : std::max(1, cores / ranks);
  oversubscribed_ = threads_ * ranks > cores;
  watchdog_ = std::make_unique<Watchdog>(
      board_, WatchdogOptions{WaitLimitMs(options_), 500},
      [this](const Wait& wait, int64_t waited_ms) { OnOverdue(wait, waited_ms); });
  if (group_->rank() == 0) {
    CoordinatorLinkOptions link;
    link.group = options_.group;
    link.orphan_timeout_ms = options_.orphan_timeout_ms;
    // Longer than the coordinator waits for a result before it gives this group up.
    link.silence_ms = options_.step_timeout_ms + options_.step_timeout_ms / 2;
    coordinator_ = std::make_unique<CoordinatorLink>(&client_, link);
    coordinator_->ReportProgress("opening the model", 0, 0);
  }
  ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(options_.model));
  ASSIGN_OR_RETURN(layout_, MakeLayout(checkpoint_->spec(), options_.tensor_parallel,
                                       options_.pipeline_parallel, group_->rank()));
  if (group_->rank() == 0) {
    const std::vector<std::string> unused = UnusedTensors(*checkpoint_);
    if (!unused.empty()) {
      LOG_WARN("{} tensors of the model are used by nothing, the first is \"{}\"", unused.size(),
               Printable(unused[0]));
    }
    ASSIGN_OR_RETURN(TextParts text, LoadTextParts(options_.model));
    text_ = std::make_unique<TextParts>(std::move(text));
  }
  if (options_.trace.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      trace_, Trace::Open(absl::StrCat(options_.trace, ".rank", group_->rank()), group_->rank(),
                          absl::StrCat("rank ", group_->rank(), ", stage ", layout_.stage)));
  return absl::OkStatus();
}

absl::Status Rank::OpenShared() {
  if (options_.pipeline_parallel > 1) {
    transport_ = std::make_unique<MpiTransport>(group_->world(),
                                                MpiTransportOptions{!oversubscribed_, &board_});
  }
  ShmOptions options;
  options.rank = layout_.tp_rank;
  options.size = layout_.tensor_parallel;
  options.first_world_rank = layout_.RankOf(layout_.stage, 0);
  options.spin = !oversubscribed_;
  options.board = &board_;
  if (transport_ != nullptr) {
    options.background = [this] { return transport_->Progress(); };
  }
  ASSIGN_OR_RETURN(std::shared_ptr<SharedRegion> region, group_->ShareStageRegion(options));
  communicator_ = std::make_unique<ShmCommunicator>(std::move(region), options);
  return absl::OkStatus();
}

absl::Status Rank::Load() {
  // Before the pool pins this thread: threads inherit what their maker is pinned to.
  if (layout_.last_stage() && layout_.leader()) {
    ResultsLinkOptions link;
    link.group = options_.group;
    link.dial_at_once = false;
    results_ = std::make_unique<ResultsLink>(&client_, link);
  }
  StreamOptions options;
  options.threads = threads_;
  const bool pin = !oversubscribed_ && UsableCores() == sysconf(_SC_NPROCESSORS_ONLN);
  options.first_cpu = pin ? group_->rank_on_node() * threads_ : -1;
  if (layout_.last_stage()) {
    const ModelSpec& spec = checkpoint_->spec();
    options.workspace_bytes = threads_ * SampleWorkspaceBytes(spec.vocabulary, spec.context_length);
  }
  host_ = options_.cpu_target_set ? CpuStream::Create(options, options_.cpu_target)
                                  : CpuStream::Create(options);
  RETURN_IF_ERROR(OpenGpu());
  RETURN_IF_ERROR(OpenLinks());
  LOG_INFO("rank {} of {}: stage {}, layers {} to {}, heads {} to {}, {} threads, {}",
           group_->rank(), group_->size(), layout_.stage, layout_.layers.begin,
           layout_.layers.end - 1, layout_.heads.begin, layout_.heads.end - 1, threads_,
           stream().where() + ", " + stream().name());
  const LoadProgress progress = [this](const std::string& phase, int64_t done, int64_t total) {
    if (coordinator_ != nullptr) coordinator_->ReportProgress(phase, done, total);
  };
  ExecutorOptions executor = options_.executor;
  executor.gpu_ranks = gpu_ranks_;
  executor.links = links_.get();
  ASSIGN_OR_RETURN(executor_, StageExecutor::Load(*checkpoint_, layout_, executor, stream(),
                                                  communicator_.get(), progress));
  stream().Seal();
  host_->Seal();
  return absl::OkStatus();
}

// Leaves gpu_ null where the rank computes on the CPU.
absl::Status Rank::OpenGpu() {
  if (options_.device == DeviceChoice::kCpu) return absl::OkStatus();
  const absl::StatusOr<int> found = CudaDevices();
  const int count = found.value_or(0);
  if (options_.device == DeviceChoice::kAuto && options_.devices.empty() && count == 0) {
    LOG_INFO("rank {} computes on the CPU: {}", group_->rank(),
             std::string(found.status().message()));
    return absl::OkStatus();
  }
  std::vector<int> devices = options_.devices;
  // With none OpenCudaStream says why.
  for (int i = 0; options_.devices.empty() && i < std::max(count, 1); ++i) devices.push_back(i);
  const int sharers = (group_->ranks_on_node() + static_cast<int>(devices.size()) - 1) /
                      static_cast<int>(devices.size());
  gpu_ranks_ = sharers;
  if (sharers > 1 && group_->rank_on_node() == 0) {
    LOG_WARN("{} ranks share {} GPUs of this node", group_->ranks_on_node(), devices.size());
  }
  const int device = devices[group_->rank_on_node() % devices.size()];
  ASSIGN_OR_RETURN(gpu_, OpenCudaStream(device, *host_));
  return absl::OkStatus();
}

absl::Status Rank::OpenLinks() {
  DeviceLinksOptions options;
  options.layout = layout_;
  options.choice = options_.collectives;
  options.host = group_->places()[group_->rank()].host;
  options.hidden = checkpoint_->spec().hidden;
  options.most_values = options_.executor.step_tokens * options.hidden;
  options.peer_sum_bytes = options_.peer_sum_bytes;
  // Less than the watchdog allows, which knows no rank's name.
  options.peer_wait_ms = options_.step_timeout_ms;
  options.communicator = communicator_.get();
  options.spin = !oversubscribed_;
  options.board = &board_;
  if (transport_ != nullptr) {
    options.background = [this] { return transport_->Progress(); };
  }
  ASSIGN_OR_RETURN(links_, DeviceLinks::Open(stream(), options, [this](const std::string& text) {
                     return group_->GatherTexts(text);
                   }));
  return absl::OkStatus();
}

absl::Status Rank::Attach() {
  ASSIGN_OR_RETURN(const std::string fingerprint, checkpoint_->Fingerprint());
  ASSIGN_OR_RETURN(const int64_t blocks, group_->Minimum(executor_->info().block_count));
  executor_->LimitBlocks(blocks);
  const std::string print =
      absl::StrCat(fingerprint, " as ", WeightFormatName(options_.executor.weights));
  ASSIGN_OR_RETURN(const std::vector<std::string> prints, group_->GatherTexts(print));
  const std::string device =
      absl::StrCat(stream().name(), links_ == nullptr ? "" : links_->numerics());
  ASSIGN_OR_RETURN(const std::vector<std::string> numerics,
                   group_->GatherTexts(RankNumerics(executor_->info().dtypes, device)));
  for (int rank = 0; rank < group_->size(); ++rank) {
    if (prints[rank] == print) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(options_.model, " is not the same model everywhere: rank ", group_->rank(),
                     " on ", group_->places()[group_->rank()].host, " reads ", print, ", rank ",
                     rank, " on ", group_->places()[rank].host, " reads ", prints[rank]));
  }
  if (results_ != nullptr) results_->Dial();
  if (group_->rank() != 0) return absl::OkStatus();
  HelloFacts facts;
  facts.checkpoint = checkpoint_.get();
  facts.text = text_.get();
  facts.fingerprint = fingerprint;
  facts.rank_numerics = numerics;
  facts.places = group_->places();
  facts.info = executor_->info();
  facts.block_count = blocks;
  facts.bitwise = gpu_ == nullptr;
  ASSIGN_OR_RETURN(v1::Hello hello, MakeHello(options_, facts));
  LOG_INFO("group {} is loaded: {} blocks of {} positions, numerics {}", options_.group, blocks,
           options_.executor.block_tokens, hello.numerics_id());
  coordinator_->SendHello(std::move(hello));
  return absl::OkStatus();
}

absl::Status Rank::Step() {
  StepLoopOptions options;
  options.layout = layout_;
  options.hidden = checkpoint_->spec().hidden;
  options.step_tokens = options_.executor.step_tokens;
  options.now_us = UnixMicroseconds;
  StepLoopParts parts;
  parts.plans = coordinator_.get();
  parts.results = results_.get();
  parts.communicator = communicator_.get();
  parts.transport = transport_.get();
  parts.executor = executor_.get();
  parts.board = &board_;
  parts.trace = trace_.get();
  loop_ = std::make_unique<StepLoop>(options, parts);
  loop_published_.store(loop_.get(), std::memory_order_release);
  return loop_->Run();
}

int Rank::Agree(const absl::Status& mine) {
  int failed = -1, code = 0;
  const absl::Status agreed =
      group_->AgreeOnFailure(!mine.ok(), mine.ok() ? 0 : ExitCodeOf(mine), &failed, &code);
  if (!agreed.ok()) return Fail(agreed);
  if (failed < 0) return 0;
  if (failed == group_->rank()) Fail(mine);
  // mpirun ends all ranks when the first one exits, so all wait for the one that speaks.
  static_cast<void>(group_->Barrier());
  return code;
}

int Rank::ExitCodeOf(const absl::Status& status) {
  if (coordinator_ != nullptr && coordinator_->exit_code() != 0) return coordinator_->exit_code();
  return !attached_ && IsUsage(status) ? kExitUsage : kExitRetryable;
}

int Rank::Fail(const absl::Status& status) {
  const int code = ExitCodeOf(status);
  const std::string text(status.message());
  LOG_ERROR("{}", text);
  // The coordinator knows best when it is the one that refused or is missing.
  if (coordinator_ == nullptr || coordinator_->exit_code() == 0) {
    ReportFault(attached_ ? "step" : "start", text);
  }
  return code;
}

void Rank::ReportFault(const std::string& operation, const std::string& text) {
  v1::Fault fault;
  fault.set_group(options_.group);
  const StepLoop* loop = loop_published_.load(std::memory_order_acquire);
  if (loop != nullptr) {
    fault.set_epoch(loop->epoch());
    fault.set_plan_id(loop->plan_id());
  }
  if (group_ != nullptr) fault.set_rank(group_->rank());
  fault.set_stage(layout_.stage);
  fault.set_layer(LayerOf(text));
  fault.set_operation(operation);
  fault.set_text(text);
  const absl::Status told = client_.ReportFault(fault);
  if (!told.ok()) LOG_WARN("the coordinator was not told: {}", std::string(told.message()));
}

// On the watchdog's thread: the main thread is stuck, perhaps inside MPI, so neither it nor MPI is
// touched.
void Rank::OnOverdue(const Wait& wait, int64_t waited_ms) {
  const std::string text = DescribeWait(wait, waited_ms);
  LOG_ERROR("overdue: {} (the limit is {} ms)", text, WaitLimitMs(options_));
  ReportFault(wait.operation, text);
  _exit(kExitWatchdog);
}

}  // namespace pergola
