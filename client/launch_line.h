// The command lines of the processes that `up` starts. Pure text, no process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/hosts.h"

namespace pergola {

struct GroupOptions {
  std::string name = "group-0";
  std::string mpirun = "mpirun";
  std::string worker = "pergola-worker";
  std::string model;                // absolute path
  std::string coordinator_address;  // the internal listener
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  int threads = 0;             // per rank; 0: the worker chooses
  std::string dtype = "auto";  // of the weight matrices
  std::string device = "auto";
  std::string devices;      // of a node, "0,1,2,3"; empty: all
  std::vector<Host> hosts;  // empty: this machine
  bool remote = false;      // whether any host is another machine
  bool root = false;
  std::vector<int> cpus;   // those its processes may use; empty: all
  std::string trace_file;  // empty: no trace
  std::string log_level = "info";
  std::vector<std::string> worker_arguments;  // handed on as they are
};

// mpirun and its arguments. INVALID_ARGUMENT naming value and limit if the layout cannot be spread
// over the hosts, and if `devices` is no list of GPUs or has fewer than a host has ranks.
absl::StatusOr<std::vector<std::string>> GroupCommand(const GroupOptions& options);

// `count` groups like `one`, named group-0, group-1, ... Hosts are dealt evenly, each to one group:
// INVALID_ARGUMENT with both numbers if they do not divide. Without hosts the groups share this
// machine: each gets its own of the `devices` that `one` names (INVALID_ARGUMENT if they are too
// few), its share of `cpus` (one of them if they are fewer than the groups), and, if `one` leaves
// it to the worker, which knows only its own group, the number of threads per rank.
absl::StatusOr<std::vector<GroupOptions>> DealGroups(const GroupOptions& one, int count,
                                                     const std::vector<int>& cpus);

struct CoordinatorOptions {
  std::string program = "pergola-coordinator";
  std::string model;
  std::string listen;
  std::string internal_listen;
  std::string http_listen;  // empty: no HTTP
  std::string token_file;
  std::string run_file;
  std::string trace_dir;
  int64_t drain_timeout_ms = 30000;
  std::string log_level = "info";
  std::vector<std::string> arguments;  // handed on as they are
};
std::vector<std::string> CoordinatorCommand(const CoordinatorOptions& options);

// One line that a shell reads as exactly these arguments.
std::string ShellLine(const std::vector<std::string>& arguments);

// The executable file `name` means: itself if it holds a slash, else the first hit along
// `search_path`. NOT_FOUND.
absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& search_path);

}  // namespace pergola
