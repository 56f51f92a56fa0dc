// The run file: where a running `pergola up` can be found. JSON, mode 0600, removed when `up` ends.
// The coordinator writes a smaller one of its own, which `up` reads.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pergola {

struct RunFile {
  std::string model;
  std::string public_address;    // host:port
  std::string internal_address;  // host:port
  std::string http_address;      // host:port; empty: none
  std::string token_file;
  int up_pid = 0;
  int coordinator_pid = 0;  // 0: not running at the moment
  struct Group {
    std::string name;
    int mpirun_pid = 0;  // 0: not running at the moment
  };
  std::vector<Group> groups;  // at least one
};

std::string RunFileToJson(const RunFile& run);
// INVALID_ARGUMENT naming the field that is missing or wrong. Unknown fields are ignored.
absl::StatusOr<RunFile> RunFileFromJson(const std::string& json);
// NOT_FOUND says that nothing runs, in words for a person.
absl::StatusOr<RunFile> ReadRunFile(const std::string& path);

struct CoordinatorFile {
  int pid = 0;
  std::string public_address;
  std::string internal_address;
  std::string http_address;  // empty: none
};
absl::StatusOr<CoordinatorFile> CoordinatorFileFromJson(const std::string& json);

// Where `up` writes its run file and `status`, `drain` and `generate` look for it unless told.
std::string DefaultRunFile(const std::string& runtime_dir);

}  // namespace pergola
