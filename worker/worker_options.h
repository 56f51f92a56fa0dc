// What the flags of pergola-worker say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu_stream.h"
#include "worker/comm/device_links.h"
#include "worker/step/stage_executor.h"

namespace pergola {

// Where a rank computes: on a GPU if the program and the machine have one, or as told.
enum class DeviceChoice : uint8_t { kAuto, kCpu, kCuda };

struct WorkerOptions {
  std::string model;
  std::string coordinator;      // host:port
  std::string join_token_file;  // empty: the environment variable
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  int threads = 0;  // 0: cores / ranks on the node
  std::string group = "group0";
  ExecutorOptions executor;
  DeviceChoice device = DeviceChoice::kAuto;
  // CUDA devices of a node, dealt to its ranks in turn; empty: all it has.
  std::vector<int> devices;
  Collectives collectives = Collectives::kAuto;
  // Sums of a stage up to this size go through memory that its GPUs share, where they can; 0: none;
  // kTriedPeerSum: those that are faster so.
  int64_t peer_sum_bytes = kTriedPeerSum;
  bool cpu_target_set = false;
  CpuTarget cpu_target = CpuTarget::kReference;
  std::string trace;  // path prefix; empty: none
  int64_t orphan_timeout_ms = 600'000;
  int64_t step_timeout_ms = 60'000;
  std::string log_level = "info";
};

// INVALID_ARGUMENT naming flag, value and limit; CANCELLED with the text to print for --help.
absl::StatusOr<WorkerOptions> ParseWorkerOptions(int argc, const char* const* argv);

// The first line of the file, without white space around it. INVALID_ARGUMENT if there is none.
absl::StatusOr<std::string> ReadJoinToken(const std::string& path);

}  // namespace pergola
