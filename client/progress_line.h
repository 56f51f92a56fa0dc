// How far loading is: a bar that redraws itself on a terminal, else a line now and then.
#pragma once

#include <chrono>
#include <string>

#include "pergola/v1/worker.pb.h"

namespace pergola {

// "reading weights [#####.....]  50 % 49.2 of 98.4 MB"; without a total only the phase.
std::string ProgressText(const v1::Progress& progress);

class ProgressLine {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // Between two lines where there is no terminal.
  static constexpr std::chrono::seconds kLineInterval{2};

  explicit ProgressLine(bool terminal) : terminal_(terminal) {}

  // What to print now; empty if nothing changed or it is too early.
  std::string Update(const v1::Progress& progress, Time now);
  // What to print before any other line: ends a bar that stands open.
  std::string Interrupt();

 private:
  const bool terminal_;
  bool open_ = false;
  std::string last_;
  Time last_time_{};
};

}  // namespace pergola
