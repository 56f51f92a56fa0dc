#include "worker/worker_options.h"

#include <CLI/CLI.hpp>
#include <fstream>

#include "absl/strings/ascii.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxMilliseconds = 30LL * 24 * 3600 * 1000;
constexpr size_t kMaxGroupCharacters = 64;  // worker.proto

absl::StatusOr<CpuTarget> ParseTarget(const std::string& name) {
  std::string known;
  for (const CpuTarget target :
       {CpuTarget::kReference, CpuTarget::kPortable, CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (name == CpuTargetName(target)) {
      if (CpuTargetSupported(target)) return target;
      return absl::InvalidArgumentError(
          absl::StrCat("--cpu-target is ", name, ", which this machine lacks"));
    }
    absl::StrAppend(&known, known.empty() ? "" : ", ", CpuTargetName(target));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--cpu-target is '", name, "'; it must be one of ", known));
}

absl::StatusOr<DType> ParseKvDType(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-dtype is '", name, "'; it must be f32, bf16 or f16"));
}

absl::Status CheckOptions(const WorkerOptions& options) {
  if (options.group.empty() || options.group.size() > kMaxGroupCharacters) {
    return absl::InvalidArgumentError(absl::StrCat("--group has ", options.group.size(),
                                                   " characters; it must have 1 to ",
                                                   kMaxGroupCharacters));
  }
  const int64_t block = options.executor.block_tokens;
  if (block != 16 && block != 32 && block != 64 && block != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("--block-tokens is ", block, "; it must be 16, 32, 64 or 128"));
  }
  if (options.log_level != "debug" && options.log_level != "info" && options.log_level != "warn" &&
      options.log_level != "error") {
    return absl::InvalidArgumentError(absl::StrCat("--log-level is '", options.log_level,
                                                   "'; it must be debug, info, warn or error"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WorkerOptions> ParseWorkerOptions(int argc, const char* const* argv) {
  WorkerOptions options;
  std::string cpu_target, kv_dtype;
  int64_t kv_mib = 0;
  CLI::App app("pergola-worker: one rank of a group; started by mpirun, one process per rank");
  app.add_option("--model", options.model, "model directory or .gguf file")->required();
  app.add_option("--coordinator", options.coordinator, "host:port of its internal listener")
      ->required();
  app.add_option("--join-token-file", options.join_token_file,
                 "file with the join token (else the environment variable PERGOLA_JOIN_TOKEN)");
  app.add_option("--tp", options.tensor_parallel, "ranks per stage")->check(CLI::Range(1, 1 << 20));
  app.add_option("--pp", options.pipeline_parallel, "stages")->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", options.threads, "per rank; 0: cores / ranks on the node")
      ->check(CLI::Range(0, kMaxThreads));
  app.add_option("--group", options.group, "name of this group at the coordinator");
  app.add_option("--slots", options.executor.slot_count, "sequences at once")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--block-tokens", options.executor.block_tokens, "positions per KV block");
  app.add_option("--step-tokens", options.executor.step_tokens, "most token rows per step")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--kv-mib", kv_mib, "KV memory per rank; 0: what all slots use, at most 1024")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  app.add_option("--kv-dtype", kv_dtype, "f32, bf16 or f16");
  app.add_option("--context-length", options.executor.context_length,
                 "tokens; 0: the model's, or what the KV holds")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  app.add_option("--cpu-target", cpu_target, "instruction set; unset: the best of this machine");
  app.add_option("--trace", options.trace, "write a Chrome trace to FILE.rankN");
  app.add_option("--orphan-timeout-ms", options.orphan_timeout_ms, "without a coordinator")
      ->check(CLI::Range(int64_t{0}, kMaxMilliseconds));
  app.add_option("--step-timeout-ms", options.step_timeout_ms, "the coordinator's; waits get twice")
      ->check(CLI::Range(int64_t{1}, kMaxMilliseconds));
  app.add_option("--log-level", options.log_level, "debug, info, warn or error");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return absl::CancelledError(app.help());
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  options.executor.kv_bytes = kv_mib << 20;
  if (!cpu_target.empty()) {
    ASSIGN_OR_RETURN(options.cpu_target, ParseTarget(cpu_target));
    options.cpu_target_set = true;
  }
  if (!kv_dtype.empty()) {
    ASSIGN_OR_RETURN(options.executor.kv_dtype, ParseKvDType(kv_dtype));
    options.executor.kv_dtype_set = true;
  }
  RETURN_IF_ERROR(CheckOptions(options));
  return options;
}

absl::StatusOr<std::string> ReadJoinToken(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!file || !std::getline(file, token)) {
    return absl::InvalidArgumentError(absl::StrCat("--join-token-file ", path, " is not readable"));
  }
  absl::StripAsciiWhitespace(&token);
  if (token.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--join-token-file ", path, " is empty"));
  }
  return token;
}

}  // namespace pergola
