#include "client/launch_line.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/cli/device_list.h"
#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

bool IsProgram(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

void Add(std::vector<std::string>& line, std::initializer_list<std::string> arguments) {
  line.insert(line.end(), arguments);
}

absl::Status CheckLayout(const GroupOptions& options) {
  if (options.tensor_parallel < 1 || options.tensor_parallel > kMaxSlotsPerHost) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tp ", options.tensor_parallel, " is not within 1 to ", kMaxSlotsPerHost));
  }
  if (options.pipeline_parallel < 1 || options.pipeline_parallel > static_cast<int>(kMaxLayers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--pp ", options.pipeline_parallel, " is not within 1 to ", kMaxLayers));
  }
  if (options.tensor_parallel * options.pipeline_parallel > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat("--tp ", options.tensor_parallel, " x --pp ",
                                                   options.pipeline_parallel, " are more than ",
                                                   kMaxRanks, " ranks"));
  }
  return absl::OkStatus();
}

// What every rank, or the last one, would refuse after it was started.
absl::Status CheckDevices(const GroupOptions& options, int ranks_per_host) {
  ASSIGN_OR_RETURN(const std::vector<int> devices, ParseDevices(options.devices));
  if (devices.empty()) return absl::OkStatus();
  if (options.device == "cpu") {
    return absl::InvalidArgumentError("--devices is set beside --device cpu, which uses none");
  }
  if (ranks_per_host <= static_cast<int>(devices.size())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--devices is '", options.devices, "', ", devices.size(), " GPUs for the ", ranks_per_host,
      " ranks of a machine; name one for each (ranks share GPUs only where --devices is not set)"));
}

// The GPUs of group `i` of those that share this machine: as many as it has ranks.
absl::StatusOr<std::string> DealDevices(const GroupOptions& one, int i, int count) {
  ASSIGN_OR_RETURN(const std::vector<int> devices, ParseDevices(one.devices));
  const int ranks = one.tensor_parallel * one.pipeline_parallel;
  if (static_cast<int>(devices.size()) < ranks * count) {
    return absl::InvalidArgumentError(
        absl::StrCat("--devices is '", one.devices, "', ", devices.size(), " GPUs for ", count,
                     " groups of ", ranks, " ranks; name one for each"));
  }
  const auto first = devices.begin() + std::ptrdiff_t{i} * ranks;
  return absl::StrJoin(first, first + ranks, ",");
}

}  // namespace

absl::StatusOr<std::vector<std::string>> GroupCommand(const GroupOptions& options) {
  RETURN_IF_ERROR(CheckLayout(options));
  ASSIGN_OR_RETURN(const int ranks_per_host,
                   RanksPerHost(options.hosts, options.tensor_parallel, options.pipeline_parallel));
  RETURN_IF_ERROR(CheckDevices(options, ranks_per_host));
  const int ranks = options.tensor_parallel * options.pipeline_parallel;
  std::vector<std::string> line = {options.mpirun, "-n", std::to_string(ranks)};
  // mpirun binds each rank to one core even with --oversubscribe (measured); the worker's pool pins
  // itself.
  Add(line, {"--bind-to", "none", "--oversubscribe"});
  // By name only: the value never stands on a command line.
  Add(line, {"-x", kJoinTokenVariable});
  if (!options.hosts.empty()) {
    std::string hosts;
    for (const Host& host : options.hosts) {
      absl::StrAppend(&hosts, hosts.empty() ? "" : ",", host.name, ":", ranks_per_host);
    }
    // By slot fills one host before the next, so the consecutive ranks of a stage share one.
    Add(line, {"--host", hosts, "--map-by", "slot"});
  }
  if (options.root) line.emplace_back("--allow-run-as-root");
  Add(line, {"--mca", "btl", options.remote ? "self,vader,tcp" : "self,vader"});
  // Kernel-assisted copies need ptrace rights that containers lack, and fail noisily there; hops
  // are small anyway.
  Add(line, {"--mca", "btl_vader_single_copy_mechanism", "none"});
  // With one machine nothing of MPI listens beyond the loopback.
  if (!options.remote) Add(line, {"--mca", "oob_tcp_if_include", "lo"});
  Add(line, {options.worker, "--model", options.model, "--coordinator", options.coordinator_address,
             "--group", options.name, "--tp", std::to_string(options.tensor_parallel), "--pp",
             std::to_string(options.pipeline_parallel)});
  if (options.threads > 0) Add(line, {"--threads", std::to_string(options.threads)});
  if (options.dtype != "auto") Add(line, {"--dtype", options.dtype});
  if (options.device != "auto") Add(line, {"--device", options.device});
  if (!options.devices.empty()) Add(line, {"--devices", options.devices});
  if (!options.trace_file.empty()) Add(line, {"--trace", options.trace_file});
  Add(line, {"--log-level", options.log_level});
  line.insert(line.end(), options.worker_arguments.begin(), options.worker_arguments.end());
  return line;
}

absl::StatusOr<std::vector<GroupOptions>> DealGroups(const GroupOptions& one, int count,
                                                     const std::vector<int>& cpus) {
  RETURN_IF_ERROR(CheckLayout(one));
  const int host_count = static_cast<int>(one.hosts.size());
  if (host_count % count != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--groups ", count, " does not divide the ",
                                                   host_count,
                                                   " hosts; each group takes equally many"));
  }
  std::vector<GroupOptions> groups(static_cast<size_t>(count), one);
  if (count == 1) return groups;
  const int cpu_count = static_cast<int>(cpus.size());
  const int ranks = one.tensor_parallel * one.pipeline_parallel * count;
  for (int i = 0; i < count; ++i) {
    GroupOptions& group = groups[static_cast<size_t>(i)];
    group.name = absl::StrCat("group-", i);
    if (!one.trace_file.empty()) group.trace_file = absl::StrCat(one.trace_file, ".", group.name);
    if (host_count > 0) {
      // A host has ranks of one group only, so the worker's own count of threads is right.
      const auto first = one.hosts.begin() + ptrdiff_t{i} * (host_count / count);
      group.hosts.assign(first, first + host_count / count);
      continue;
    }
    if (!one.devices.empty()) {
      ASSIGN_OR_RETURN(group.devices, DealDevices(one, i, count));
    }
    if (group.threads == 0) group.threads = std::max(1, cpu_count / ranks);
    if (cpu_count == 0) continue;
    // Each worker pins its threads from the first CPU on as if its group were alone, unless it is
    // given a part of the machine.
    const int first = cpu_count >= count ? i * cpu_count / count : i % cpu_count;
    const int end = cpu_count >= count ? (i + 1) * cpu_count / count : first + 1;
    group.cpus.assign(cpus.begin() + first, cpus.begin() + end);
  }
  return groups;
}

std::vector<std::string> CoordinatorCommand(const CoordinatorOptions& options) {
  std::vector<std::string> line = {options.program};
  Add(line, {"--model", options.model, "--listen", options.listen, "--internal-listen",
             options.internal_listen, "--join-token-file", options.token_file, "--run-file",
             options.run_file});
  if (!options.http_listen.empty()) Add(line, {"--http-listen", options.http_listen});
  if (!options.trace_dir.empty()) Add(line, {"--trace", options.trace_dir + "/coordinator.json"});
  Add(line, {"--drain-timeout-ms", std::to_string(options.drain_timeout_ms), "--log-level",
             options.log_level});
  line.insert(line.end(), options.arguments.begin(), options.arguments.end());
  return line;
}

std::string ShellLine(const std::vector<std::string>& arguments) {
  constexpr absl::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,=@%+";
  std::string line;
  for (const std::string& argument : arguments) {
    if (!line.empty()) line += ' ';
    if (!argument.empty() &&
        argument.find_first_not_of(kPlain.data(), 0, kPlain.size()) == std::string::npos) {
      line += argument;
      continue;
    }
    line += '\'';
    for (const char c : argument) {
      if (c == '\'') {
        line += "'\\''";
      } else {
        line += c;
      }
    }
    line += '\'';
  }
  return line;
}

absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& search_path) {
  if (name.find('/') != std::string::npos) {
    if (IsProgram(name)) return name;
    return absl::NotFoundError(absl::StrCat(name, " is not an executable file"));
  }
  for (const auto directory : absl::StrSplit(ToAbsl(search_path), ':', absl::SkipEmpty())) {
    const std::string path = absl::StrCat(directory, "/", name);
    if (IsProgram(path)) return path;
  }
  return absl::NotFoundError(absl::StrCat("no program '", name, "' along PATH"));
}

}  // namespace pergola
