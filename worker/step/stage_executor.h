// One rank's part of one stage: owns weights, KV and slot state, and executes plans. Knows nothing
// of MPI, gRPC or where plans come from; ranks of a stage meet in the StageCommunicator.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/stream.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/memory_plan.h"
#include "model/weight_format.h"
#include "pergola/v1/worker.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/device_links.h"

namespace pergola {

struct ExecutorOptions {
  int64_t slot_count = 64;
  int64_t block_tokens = 32;
  int64_t step_tokens = 512;   // most rows of a plan
  int64_t context_length = 0;  // 0: the model's
  // KV per rank; 0: what all slots can use, at most 1 GiB, but one sequence of a context_length
  // that is not 0. What it holds bounds the context otherwise (model/memory_plan.h, PlanKv).
  int64_t kv_bytes = 0;
  // Ignored unless kv_dtype_set; default: f32 if all matrices that are held are f32, else f16.
  DType kv_dtype = DType::kF32;
  bool kv_dtype_set = false;
  WeightFormat weights = WeightFormat::kAuto;
  // Ignored unless activation_dtype_set; default: what suits the weights on the device.
  DType activation_dtype = DType::kF32;
  bool activation_dtype_set = false;
  int64_t block_count = 0;  // exact number instead of kv_bytes (tests); 0: from kv_bytes
  // Of a GPU's memory, for its ranks together. With kv_bytes 0 the KV gets all that the rest leaves
  // of it, at most what all slots can use.
  float gpu_memory_fraction = 0.9F;
  int gpu_ranks = 1;  // that share the GPU
  // How the GPU reaches those of other ranks; null: through the host. Borrowed; outlives the
  // executor.
  DeviceLinks* links = nullptr;
};

// Which weight type and KV type a rank ended up with: part of the numerics id.
struct ExecutorInfo {
  int64_t block_count = 0;
  int64_t context_length = 0;
  MemoryPlan memory;     // as planned
  MemoryPlan allocated;  // as allocated, residual_bytes aside: those are the step loop's
  std::string dtypes;    // "q4_1+f32 weights, f16 kv"
  DType kv_dtype = DType::kF32;
};

using LoadProgress = std::function<void(const std::string& phase, int64_t done, int64_t total)>;

class StageExecutor {
 public:
  // Reads this rank's bytes, packs them, plans and allocates all memory, logs the memory plan.
  // INVALID_ARGUMENT naming value and limit for weights with NaN or Inf, options out of range, and
  // a KV cache that does not hold the context asked for; RESOURCE_EXHAUSTED if the plan does not
  // fit the machine. `stream` and `communicator` are borrowed and must outlive the executor;
  // `communicator` may be null if tensor_parallel is 1, and is not called while loading.
  static absl::StatusOr<std::unique_ptr<StageExecutor>> Load(
      const Checkpoint& checkpoint, const RankLayout& layout, const ExecutorOptions& options,
      Stream& stream, StageCommunicator* communicator, const LoadProgress& progress);
  virtual ~StageExecutor() = default;

  virtual const ExecutorInfo& info() const = 0;

  // Uses only the first `block_count` blocks (the minimum over the ranks, known after all have
  // loaded).
  virtual void LimitBlocks(int64_t block_count) = 0;

  // Checks a plan against the slots and blocks without changing anything: the same verdict on every
  // rank. The message names field and value.
  virtual absl::Status Validate(const v1::StepPlan& plan) const = 0;

  // Executes a validated plan, in two halves: Begin hands it to the device, Finish waits for what
  // became of it. Rows are the entries' tokens in order. `plan` and `hidden` stay until Finish.
  //   ids: [rows] token ids with every TokenRef resolved; read in the first stage (embedding) and
  //        in the last (token histories), may be empty elsewhere. An id outside the vocabulary
  //        embeds as zeros: a TokenRef to an entry that ended with NAN may be -1. If the plan
  //        before is not finished, TokenOfEntry(e) (kernels/decoder_ops.h) is what its entry e
  //        samples.
  //   hidden: [rows, hidden] f32. In: the previous stage's output (unused in the first stage). Out,
  //        at Finish: this stage's output (in the last stage: unspecified). Unused if
  //        hops_on_device().
  //   results: in the last stage, one EntryResult per entry, equal on every rank of the stage; else
  //        untouched.
  virtual absl::Status Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                             float* hidden) = 0;
  // Of the oldest plan that is not finished.
  virtual absl::Status Finish(std::vector<v1::EntryResult>* results) = 0;
  absl::Status Execute(const v1::StepPlan& plan, absl::Span<const int32_t> ids, float* hidden,
                       std::vector<v1::EntryResult>* results);

  // Whether Begin itself takes the hidden state from the stage before and gives it to the next,
  // on the device. Each rank has its share from its column and gathers the rest within its stage.
  virtual bool hops_on_device() const = 0;

  // Whether it is of use to begin a plan before the one before is finished: a device computes
  // beside the host, and knows the tokens first. False: each Begin is followed by its Finish.
  virtual bool RunsAhead() const = 0;
  // Where it runs ahead: whether `next`, validated, may begin now. At most two plans are begun; a
  // plan that needs the host's word on the plan before waits for its Finish.
  virtual bool MayBegin(const v1::StepPlan& next) const = 0;
  // Whether Finish would not wait long; an error if the device or a peer of it has failed.
  virtual absl::StatusOr<bool> Ready() = 0;

  // Forward passes that were done again so far: begun with the device's guess at a token that the
  // host then chose otherwise.
  virtual int64_t repeated_passes() const = 0;

  // Forgets all slots (a new epoch); every plan begun is finished. Weights stay.
  virtual void ForgetSlots() = 0;

  // Returns when the device is done with all finished plans: what they send may leave later than
  // Finish returns. Before the rank ends.
  virtual absl::Status Drain() { return absl::OkStatus(); }

  // Test hook: how many shapes of steps are recorded (worker/model/step_graphs.h).
  virtual int64_t recordings() const = 0;

  // Test hook: the f32 logits [vocabulary] of the last Execute's i-th needed row (last stage,
  // tp_rank 0 only; kept only after KeepLogits(true)). KeepLogits decides what the ranks exchange:
  // give every rank of the stage the same value.
  virtual void KeepLogits(bool keep) = 0;
  virtual absl::Span<const float> Logits(int64_t row) const = 0;
};

// Rows of a plan: the sum over entries of ids_size() or 1 for a TokenRef.
int64_t PlanRows(const v1::StepPlan& plan);

}  // namespace pergola
