#include "worker/step/memory_plan.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace pergola {
namespace {

// KV of a rank when nobody asks for more: enough for a demo, small enough for several ranks on a
// laptop.
constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;

std::string MiB(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

int64_t AvailableMemory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return 0;
}

absl::StatusOr<int64_t> PlanBlockCount(const KvRequest& request) {
  const int64_t blocks_per_sequence =
      (request.context_length + request.block_tokens - 1) / request.block_tokens;
  int64_t blocks = request.block_count;
  if (blocks == 0 && request.kv_bytes > 0) blocks = request.kv_bytes / request.block_bytes;
  if (blocks == 0 && request.kv_bytes == 0) {
    blocks =
        std::min(request.slot_count * blocks_per_sequence, kDefaultKvBytes / request.block_bytes);
    blocks = std::max(blocks, blocks_per_sequence);
  }
  if (blocks < blocks_per_sequence) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the KV cache holds ", blocks, " blocks of ", request.block_tokens, " tokens (",
        request.block_bytes, " bytes each); one sequence of the full context of ",
        request.context_length, " tokens takes ", blocks_per_sequence, " blocks, ",
        blocks_per_sequence * request.block_bytes, " bytes"));
  }
  if (blocks > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the KV cache has ", blocks, " blocks; the most is ", std::numeric_limits<int32_t>::max()));
  }
  return blocks;
}

std::string MemoryPlan::ToString() const {
  return absl::StrCat("weights ", MiB(weight_bytes), " + KV ", MiB(kv_bytes), " + workspaces ",
                      MiB(workspace_bytes), " + logits ", MiB(logit_bytes), " = ", MiB(total()));
}

absl::Status CheckFits(const MemoryPlan& plan, int64_t available) {
  if (available == 0 || plan.total() <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the rank needs ", plan.ToString(), ", and ", MiB(available),
                   " are available; use more ranks, a smaller KV cache or a shorter context"));
}

}  // namespace pergola
