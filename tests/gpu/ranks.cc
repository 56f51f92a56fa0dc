#include "tests/gpu/ranks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/sample.h"
#include "tests/gpu/forked_ranks.h"
#include "tests/gpu/nccl_environment.h"
#include "tests/gpu/report.h"
#include "tests/worker/golden.h"
#include "tests/worker/plan_builder.h"
#include "worker/comm/device_links.h"
#include "worker/comm/shm_communicator.h"
#include "worker/step/step_loop.h"

namespace pergola {
namespace {

constexpr uint32_t kBlocks = 8;
constexpr size_t kMostTokens = 64;
constexpr double kTimeoutSeconds = 25;

struct Layout {
  int tp, pp;
  Collectives collectives;
};

// What the ranks tell each other and the parent.
struct Board {
  std::atomic<uint64_t> finished{0};  // plans
  int32_t tokens[kMostTokens] = {};   // of plan i + 1
  double worst = 0;                   // of the prompt's logits against the judge's
};

ExecutorOptions Options(int ranks) {
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = 16;
  options.step_tokens = 64;
  options.context_length = 16 * kBlocks;
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  options.activation_dtype_set = true;  // f32
  options.block_count = kBlocks;
  options.gpu_ranks = ranks;
  return options;
}

// The prompt, then decodes that name the token of the plan before.
class Plans final : public PlanSource {
 public:
  Plans(const Golden& golden, int stages, const Board& board)
      : golden_(golden), depth_(static_cast<uint64_t>(stages) + 1), board_(board) {}

  absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kTickMs);
    while (true) {
      const uint64_t finished = board_.finished.load(std::memory_order_acquire);
      if (sent_ < golden_.greedy.size() && sent_ < finished + depth_) break;
      if (finished == golden_.greedy.size()) return Next::kEnd;
      if (!wait || std::chrono::steady_clock::now() > until) return Next::kNone;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    BuiltPlan built(++sent_);
    if (sent_ == 1) {
      built.Start(0);
      BuiltPlan::WantAll(built.Add(0, golden_.prompt, 0, Blocks(0, kBlocks)));
    } else {
      auto* entry = built.plan.add_entries();
      entry->mutable_from()->set_plan_id(sent_ - 1);
      entry->set_first_position(static_cast<uint32_t>(golden_.prompt.size() + sent_ - 2));
      entry->add_logits_at(0);
    }
    *plan = std::move(built.plan);
    return Next::kPlan;
  }

 private:
  const Golden& golden_;
  const uint64_t depth_;
  const Board& board_;
  uint64_t sent_ = 0;
};

class Results final : public ResultSink {
 public:
  Results(const Golden& golden, const StageExecutor& executor, Board* board)
      : golden_(golden), executor_(executor), board_(board) {}

  void Push(v1::StepResult result) override {
    const uint64_t plan = result.plan_id();
    if (result.entries_size() == 0) return;  // a tick's
    if (plan == 1) board_->worst = Worst();
    const auto& ids = result.entries(0).ids();
    board_->tokens[plan - 1] = ids.empty() ? -1 : *ids.rbegin();
    board_->finished.store(plan, std::memory_order_release);
  }

 private:
  double Worst() const {
    double worst = 0;
    const size_t vocabulary = golden_.logits.size() / golden_.prompt.size();
    for (size_t i = 0; i < golden_.logits.size(); ++i) {
      const absl::Span<const float> row = executor_.Logits(static_cast<int64_t>(i / vocabulary));
      if (row.size() != vocabulary) return INFINITY;
      const double off = std::abs(static_cast<double>(row[i % vocabulary]) - golden_.logits[i]);
      if (std::isnan(off)) return INFINITY;
      worst = std::max(worst, off);
    }
    return worst;
  }

  const Golden& golden_;
  const StageExecutor& executor_;
  Board* const board_;
};

struct Shared {
  const Golden* golden;
  Layout layout;
  const SocketMesh* mesh;
  std::shared_ptr<SharedRegion> group;  // of all ranks
  std::vector<std::shared_ptr<SharedRegion>> stages;
  Board* board;
};

ShmOptions OptionsOf(int ranks) {
  ShmOptions options;
  options.size = ranks;
  options.chunk_bytes = 64 << 10;
  return options;
}

absl::StatusOr<std::shared_ptr<SharedRegion>> NewRegion(int ranks) {
  ASSIGN_OR_RETURN(auto region,
                   SharedRegion::MapAnonymous(ShmCommunicator::RegionBytes(OptionsOf(ranks))));
  ShmCommunicator::Format(*region);
  return region;
}

// GatherTexts among all ranks.
absl::StatusOr<std::vector<std::string>> Gather(ShmCommunicator& group, const std::string& text) {
  constexpr size_t kMost = 1024;
  if (text.size() >= kMost) return absl::InternalError("a rank's text is too long");
  const std::string mine = text + std::string(kMost - text.size(), '\0');
  std::string all(kMost * static_cast<size_t>(group.size()), '\0');
  RETURN_IF_ERROR(group.AllGather(mine.data(), kMost, all.data()));
  std::vector<std::string> texts;
  for (size_t at = 0; at < all.size(); at += kMost) texts.emplace_back(all.c_str() + at);
  return texts;
}

// All of a worker but MPI and gRPC.
absl::Status RunRank(const Shared& shared, int world_rank) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(shared.golden->checkpoint));
  const ModelSpec& spec = checkpoint->spec();
  ASSIGN_OR_RETURN(const RankLayout layout,
                   MakeLayout(spec, shared.layout.tp, shared.layout.pp, world_rank));
  StreamOptions host_options;
  host_options.workspace_bytes = SampleWorkspaceBytes(spec.vocabulary, spec.context_length);
  const auto host = CpuStream::Create(host_options);
  ASSIGN_OR_RETURN(const auto gpu, OpenCudaStream(0, *host));
  WaitBoard waits;
  ShmOptions all = OptionsOf(shared.layout.tp * shared.layout.pp);
  all.rank = world_rank;
  all.board = &waits;
  ShmCommunicator group(shared.group, all);
  SetNcclEnvironment(world_rank);
  DeviceLinksOptions link;
  link.layout = layout;
  link.choice = shared.layout.collectives;
  link.host = absl::StrCat("host ", world_rank);
  link.most_values = Options(1).step_tokens * spec.hidden;
  link.board = &waits;
  ASSIGN_OR_RETURN(const auto links, DeviceLinks::Open(*gpu, link, [&](const std::string& text) {
                     return Gather(group, text);
                   }));
  ShmOptions stage = OptionsOf(shared.layout.tp);
  stage.rank = layout.tp_rank;
  stage.first_world_rank = layout.RankOf(layout.stage, 0);
  stage.board = &waits;
  ShmCommunicator communicator(shared.stages[static_cast<size_t>(layout.stage)], stage);
  SocketTransport transport(*shared.mesh, world_rank);
  ExecutorOptions executor_options = Options(shared.layout.tp * shared.layout.pp);
  executor_options.links = links.get();
  ASSIGN_OR_RETURN(const auto executor, StageExecutor::Load(*checkpoint, layout, executor_options,
                                                            *gpu, &communicator, nullptr));
  executor->KeepLogits(true);
  Plans plans(*shared.golden, shared.layout.pp, *shared.board);
  Results results(*shared.golden, *executor, shared.board);
  StepLoopParts parts;
  parts.plans = world_rank == 0 ? &plans : nullptr;
  parts.results = layout.last_stage() && layout.leader() ? &results : nullptr;
  parts.communicator = &communicator;
  parts.transport = &transport;
  parts.executor = executor.get();
  parts.board = &waits;
  StepLoopOptions options;
  options.layout = layout;
  options.hidden = spec.hidden;
  options.step_tokens = Options(1).step_tokens;
  options.now_us = WaitBoard::SteadyMicroseconds;
  return StepLoop(options, parts).Run();
}

// One golden through one layout: whether it is right; `worst` becomes at least its logits'
// difference over the bound.
absl::Status RunGolden(const Golden& golden, const Layout& layout, double* worst) {
  const int count = layout.tp * layout.pp;
  ASSIGN_OR_RETURN(const auto board_memory, SharedRegion::MapAnonymous(sizeof(Board)));
  auto* board = new (board_memory->data()) Board;
  const SocketMesh mesh(count);
  Shared shared = {&golden, layout, &mesh, nullptr, {}, board};
  ASSIGN_OR_RETURN(shared.group, NewRegion(count));
  for (int stage = 0; stage < layout.pp; ++stage) {
    ASSIGN_OR_RETURN(shared.stages.emplace_back(), NewRegion(layout.tp));
  }
  RETURN_IF_ERROR(
      ForkRanks(count, kTimeoutSeconds, [&](int rank) { return RunRank(shared, rank); }));
  const std::vector<int32_t> tokens(board->tokens, board->tokens + golden.greedy.size());
  *worst = std::max(*worst, board->worst / golden.bound);
  if (board->worst > golden.bound) {
    return absl::InternalError(absl::StrCat(golden.name, ": a logit is off by ", board->worst,
                                            ", the bound is ", golden.bound));
  }
  if (tokens != golden.greedy) {
    return absl::InternalError(absl::StrCat(golden.name, ": other greedy tokens than the judge's"));
  }
  return absl::OkStatus();
}

}  // namespace

bool CheckRanks(bool tiny) {
  constexpr Collectives kNccl = Collectives::kNccl, kHost = Collectives::kHost;
  const std::vector<Layout> layouts =
      tiny ? std::vector<Layout>{{2, 2, kNccl}, {2, 2, kHost}}
           : std::vector<Layout>{{2, 1, kHost}, {4, 1, kHost}, {1, 2, kHost}, {2, 2, kHost},
                                 {2, 1, kNccl}, {4, 1, kNccl}, {1, 2, kNccl}, {2, 2, kNccl}};
  bool right = true;
  for (const Layout& layout : layouts) {
    const bool nccl = layout.collectives == kNccl;
    std::vector<std::string> names = {"gqa_tied"};
    if (!tiny && nccl) names.emplace_back("gpt_bigcode_mqa");
    double worst = 0;
    absl::Status status = absl::OkStatus();
    const auto begin = std::chrono::steady_clock::now();
    for (const std::string& name : names) {
      const Golden golden = LoadGolden(name);
      status = RunGolden(golden, layout, &worst);
      if (!status.ok()) break;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    right &= status.ok();
    Report("ranks",
           Text("TP %d x PP %d on one GPU, %s", layout.tp, layout.pp, nccl ? "NCCL" : "host"),
           status.ok()
               ? Text("%zu goldens, logits %.2f of the bound, %.1f s", names.size(), worst, seconds)
               : std::string(status.message()),
           "judge's logits and tokens", status.ok() ? Verdict::kPass : Verdict::kFail);
  }
  return right;
}

}  // namespace pergola
