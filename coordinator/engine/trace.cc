#include "coordinator/engine/trace.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

// About 150 bytes each: a trace stays below 1 GiB, which Perfetto can still open.
constexpr uint64_t kMaxEvents = 6'000'000;

}  // namespace

Trace::Trace(const std::string& path) : file_(path, std::ios::trunc) {
  if (!file_.good()) {
    LOG_ERROR("trace file {} cannot be written", path);
    return;
  }
  file_ << "[";
}

Trace::~Trace() {
  Close();
}

void Trace::Event(const std::string& json) {
  if (!file_.is_open() || events_ >= kMaxEvents) return;
  file_ << (events_ == 0 ? "\n" : ",\n") << json;
  if (++events_ == kMaxEvents) LOG_WARN("the trace ends after {} events", kMaxEvents);
}

uint32_t Trace::AddGroup(const std::string& name, uint32_t stages) {
  const uint32_t group = ++groups_;
  const auto names = [&](const char* what, uint32_t track, const std::string& text) {
    const nlohmann::json event = {
        {"ph", "M"}, {"name", what}, {"pid", group}, {"tid", track}, {"args", {{"name", text}}}};
    // A group's name is a peer's choice: what is not UTF-8 in it must not throw.
    Event(event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  };
  names("process_name", 0, absl::StrCat("group ", name));
  names("thread_name", 0, "plans");
  for (uint32_t stage = 0; stage < stages; ++stage) {
    names("thread_name", stage + 1, absl::StrCat("stage ", stage));
  }
  return group;
}

void Trace::Plan(const PlanSpan& span, const v1::StepResult& result) {
  if (!file_.is_open()) return;
  Event(absl::StrCat(R"({"ph":"X","name":"plan )", result.plan_id(), R"(","pid":)", span.group,
                     R"(,"tid":0,"ts":)", span.sent, R"(,"dur":)", span.answered - span.sent,
                     R"(,"args":{"entries":)", span.entries, R"(,"in_flight":)", span.in_flight,
                     "}}"));
  // A stage's clock starts when it received the plan, which rank 0 passed on when it arrived: hops
  // are not shown.
  for (int stage = 0; stage < result.stages_size(); ++stage) {
    const v1::StageTime& time = result.stages(stage);
    Event(absl::StrCat(R"({"ph":"X","name":"step )", result.plan_id(), R"(","pid":)", span.group,
                       R"(,"tid":)", stage + 1, R"(,"ts":)", span.sent + time.start_us(),
                       R"(,"dur":)", time.compute_us(), "}"));
  }
}

void Trace::Close() {
  if (!file_.is_open()) return;
  file_ << "\n]\n";
  file_.close();
}

}  // namespace pergola
