#include "worker/worker_options.h"

#include <CLI/CLI.hpp>
#include <fstream>

#include "absl/strings/ascii.h"
#include "base/cli/device_list.h"
#include "base/cli/number_option.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxMilliseconds = 30LL * 24 * 3600 * 1000;
constexpr int64_t kMaxPeerSumBytes = 64 << 20;
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

absl::StatusOr<DType> ParseFloat(const char* flag, const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", name, "'; it must be f32, bf16 or f16"));
}

absl::StatusOr<DeviceChoice> ParseDevice(const std::string& name) {
  if (name == "auto") return DeviceChoice::kAuto;
  if (name == "cpu") return DeviceChoice::kCpu;
  if (name == "cuda") return DeviceChoice::kCuda;
  return absl::InvalidArgumentError(
      absl::StrCat("--device is '", name, "'; it must be auto, cpu or cuda"));
}

absl::StatusOr<Collectives> ParseCollectives(const std::string& name) {
  if (name == "auto") return Collectives::kAuto;
  if (name == "nccl") return Collectives::kNccl;
  if (name == "host") return Collectives::kHost;
  return absl::InvalidArgumentError(
      absl::StrCat("--collectives is '", name, "'; it must be auto, nccl or host"));
}

absl::StatusOr<int64_t> ParsePeerSumBytes(const std::string& text) {
  if (text == "auto") return kTriedPeerSum;
  const NumberLimits<int64_t> limits{0, kMaxPeerSumBytes};
  if (const std::optional<int64_t> bytes = ReadNumber(text, limits)) return *bytes;
  return absl::InvalidArgumentError(
      absl::StrCat("--peer-sum-bytes ", text, ": must be auto or ", LimitsText(limits)));
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

// Options as they are written, of which the meaning is read later.
struct OptionTexts {
  std::string activation_dtype, cpu_target, kv_dtype, devices;
  std::string dtype = "auto", device = "auto", collectives = "auto", peer_sum_bytes = "auto";
  int64_t kv_mib = 0;
};

void DeclareOptions(CLI::App& app, WorkerOptions& options, OptionTexts& texts) {
  app.add_option("--model", options.model, "model directory or .gguf file")->required();
  app.add_option("--coordinator", options.coordinator, "host:port of its internal listener")
      ->required();
  app.add_option("--join-token-file", options.join_token_file,
                 "file with the join token (else the environment variable PERGOLA_JOIN_TOKEN)");
  AddNumber(app, "--tp", &options.tensor_parallel, {1, 1 << 20}, "ranks per stage");
  AddNumber(app, "--pp", &options.pipeline_parallel, {1, 1 << 20}, "stages");
  AddNumber(app, "--threads", &options.threads, {0, kMaxThreads},
            "per rank; 0: cores / ranks on the node");
  app.add_option("--group", options.group, "name of this group at the coordinator");
  AddNumber(app, "--slots", &options.executor.slot_count, {1, 1 << 16}, "sequences at once");
  app.add_option("--block-tokens", options.executor.block_tokens, "positions per KV block");
  AddNumber(app, "--step-tokens", &options.executor.step_tokens, {1, 1 << 16},
            "most token rows per step");
  AddNumber(app, "--kv-mib", &texts.kv_mib, {0, int64_t{1} << 40},
            "KV memory per rank; 0: what all slots use, at most 1024, on a GPU what it has left");
  app.add_option("--dtype", texts.dtype,
                 "of the weight matrices: auto, f32, bf16, f16, int8, fp8 (GPUs only) or int4");
  app.add_option("--kv-dtype", texts.kv_dtype, "f32, bf16 or f16");
  app.add_option("--activation-dtype", texts.activation_dtype,
                 "f32, bf16 or f16; unset: f32 on the CPU, on a GPU what suits the weights");
  AddNumber(app, "--context-length", &options.executor.context_length, {0, int64_t{1} << 31},
            "tokens; 0: the model's, or what the KV holds");
  app.add_option("--device", texts.device, "auto (a GPU if there is one), cpu or cuda");
  app.add_option("--devices", texts.devices,
                 "GPUs of a node for its ranks in turn, as 0,1,2,3; unset: all");
  app.add_option("--collectives", texts.collectives,
                 "how GPUs exchange: nccl, host (through its memory), or auto (nccl where it is "
                 "there and each rank has its own GPU)");
  AddNumber(app, "--gpu-memory-fraction", &options.executor.gpu_memory_fraction, {0, 1, true},
            "of a GPU's memory that its ranks take; the KV gets what weights and buffers leave");
  app.add_option(
      "--peer-sum-bytes", texts.peer_sum_bytes,
      "largest sum over a stage that its GPUs do through each other's memory, where they "
      "reach it and --collectives is not host; 0: none; auto: what is faster than nccl, "
      "tried at the start");
  app.add_option("--cpu-target", texts.cpu_target,
                 "instruction set; unset: the best of this machine");
  app.add_option("--trace", options.trace, "write a Chrome trace to FILE.rankN");
  AddNumber(app, "--orphan-timeout-ms", &options.orphan_timeout_ms, {0, kMaxMilliseconds},
            "without a coordinator");
  AddNumber(app, "--step-timeout-ms", &options.step_timeout_ms, {1, kMaxMilliseconds},
            "the coordinator's; waits get twice");
  app.add_option("--log-level", options.log_level, "debug, info, warn or error");
}

absl::Status ReadTexts(const OptionTexts& texts, WorkerOptions& options) {
  options.executor.kv_bytes = texts.kv_mib << 20;
  if (!texts.cpu_target.empty()) {
    ASSIGN_OR_RETURN(options.cpu_target, ParseTarget(texts.cpu_target));
    options.cpu_target_set = true;
  }
  ASSIGN_OR_RETURN(options.device, ParseDevice(texts.device));
  ASSIGN_OR_RETURN(options.devices, ParseDevices(texts.devices));
  ASSIGN_OR_RETURN(options.collectives, ParseCollectives(texts.collectives));
  ASSIGN_OR_RETURN(options.peer_sum_bytes, ParsePeerSumBytes(texts.peer_sum_bytes));
  if (options.collectives == Collectives::kNccl && options.device == DeviceChoice::kCpu) {
    return absl::InvalidArgumentError(
        "--collectives nccl is set beside --device cpu, which uses none");
  }
  if (!options.devices.empty() && options.device == DeviceChoice::kCpu) {
    return absl::InvalidArgumentError("--devices is set beside --device cpu, which uses none");
  }
  ASSIGN_OR_RETURN(options.executor.weights, ParseWeightFormat(texts.dtype));
  if (!texts.kv_dtype.empty()) {
    ASSIGN_OR_RETURN(options.executor.kv_dtype, ParseFloat("--kv-dtype", texts.kv_dtype));
    options.executor.kv_dtype_set = true;
  }
  if (!texts.activation_dtype.empty()) {
    ASSIGN_OR_RETURN(options.executor.activation_dtype,
                     ParseFloat("--activation-dtype", texts.activation_dtype));
    options.executor.activation_dtype_set = true;
  }
  return CheckOptions(options);
}

}  // namespace

absl::StatusOr<WorkerOptions> ParseWorkerOptions(int argc, const char* const* argv) {
  WorkerOptions options;
  OptionTexts texts;
  CLI::App app("pergola-worker: one rank of a group; started by mpirun, one process per rank");
  DeclareOptions(app, options, texts);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return absl::CancelledError(app.help());
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  RETURN_IF_ERROR(ReadTexts(texts, options));
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
