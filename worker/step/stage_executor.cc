#include "worker/step/stage_executor.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "worker/step/decoder_executor.h"
#include "worker/step/slot_table.h"

namespace pergola {

absl::StatusOr<std::unique_ptr<StageExecutor>> StageExecutor::Load(
    const Checkpoint& checkpoint, const RankLayout& layout, const ExecutorOptions& options,
    Stream& stream, StageCommunicator* communicator, const LoadProgress& progress) {
  PERGOLA_CHECK(layout.tensor_parallel == 1 || communicator != nullptr);
  auto executor = std::make_unique<DecoderExecutor>(checkpoint.spec(), layout, stream, communicator,
                                                    options.links);
  RETURN_IF_ERROR(executor->Init(checkpoint, options, progress));
  return std::unique_ptr<StageExecutor>(std::move(executor));
}

absl::Status StageExecutor::Execute(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                                    float* hidden, std::vector<v1::EntryResult>* results) {
  RETURN_IF_ERROR(Begin(plan, ids, hidden));
  return Finish(results);
}

int64_t PlanRows(const v1::StepPlan& plan) {
  int64_t rows = 0;
  for (const v1::Entry& entry : plan.entries()) rows += EntryRows(entry);
  return rows;
}

}  // namespace pergola
