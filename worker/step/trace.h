// A rank's trace in Chrome's JSON array format (chrome://tracing, Perfetto): complete events,
// written as they end. The closing bracket is optional in that format, so the trace of a killed
// rank opens too. Main thread only.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace pergola {

class Trace {
 public:
  // Overwrites `path`. `process` names the rank in the viewer; `pid` orders it.
  static absl::StatusOr<std::unique_ptr<Trace>> Open(const std::string& path, int pid,
                                                     const std::string& process);
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // Times in microseconds since the Unix epoch, so that the files of all ranks and the coordinator
  // lie over another.
  void Complete(const char* name, int64_t begin_us, int64_t end_us, uint64_t plan_id, int64_t rows);

 private:
  Trace(FILE* file, int pid) : file_(file), pid_(pid) {}
  FILE* const file_;
  const int pid_;
};

}  // namespace pergola
