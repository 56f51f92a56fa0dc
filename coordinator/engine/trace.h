// A Chrome trace (chrome://tracing, ui.perfetto.dev) of plans and of the stages' work, written as
// it happens. One thread uses it.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "coordinator/engine/time.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

class Trace {
 public:
  // Opens `path` for writing; ok() tells whether that worked.
  explicit Trace(const std::string& path);
  ~Trace();  // Close()
  bool ok() const { return file_.good(); }

  // Names the tracks of a group; returns the number by which Plan() knows it.
  uint32_t AddGroup(const std::string& name, uint32_t stages);
  struct PlanSpan {
    uint32_t group;
    TimeUs sent;
    TimeUs answered;
    uint32_t entries;
    uint32_t in_flight;  // when answered, itself included
  };
  // A plan from sending to answer, and the stages' shares of it.
  void Plan(const PlanSpan& span, const v1::StepResult& result);
  // Makes the file valid JSON. Idempotent.
  void Close();

 private:
  void Event(const std::string& json);

  std::ofstream file_;
  uint64_t events_ = 0;
  uint32_t groups_ = 0;
};

}  // namespace pergola
