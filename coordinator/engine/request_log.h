// One line per ended sequence and at most one per second about refusals, for people and their log
// tools: key=value, strings quoted. Written by a thread of its own from a bounded queue, so that a
// blocked standard error holds up nobody: lines that find the queue full are dropped and counted.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

struct SequenceEnd {
  std::string request_id;
  std::string tenant;
  uint32_t index = 0;  // within the request
  uint32_t prompt_tokens = 0;
  uint32_t new_tokens = 0;
  TimeUs submitted = 0;
  TimeUs first_planned = kNever;  // kNever: it never was
  TimeUs first_token = kNever;
  TimeUs ended = 0;
  absl::Status status;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
};

// request id="a" index=0 tenant="" prompt_tokens=5 new_tokens=20 queue_ms=0.1 ttft_ms=12.3
// total_ms=45.6 status=OK finish=EOS (one line; error="..." instead of finish where the status is
// one; times that never came are left out).
std::string EndLine(const SequenceEnd& end);

// `text` in double quotes; quotes, backslashes and everything but printable ASCII escaped (\x0a).
// A client's words can neither end the line nor forge a field.
std::string Quoted(const std::string& text);

// Gathers refusals so that a flood of them is a line per second. Pure.
class RefusalTally {
 public:
  static constexpr TimeUs kIntervalUs = 1'000'000;

  void Add(const std::string& reason, const std::string& request_id, const absl::Status& status);
  // The line about all since the last one, if there is something to tell and it is time to.
  std::optional<std::string> Take(TimeUs now);
  // When Take() has a line; kNever if there is nothing to tell.
  TimeUs next() const { return counts_.empty() ? kNever : next_; }

 private:
  std::map<std::string, uint64_t> counts_;  // by reason: a handful
  std::string last_;
  TimeUs next_ = 0;
};

class RequestLog {
 public:
  // Beyond, lines are dropped: 8 KiB of strings each at most, 32 MiB.
  static constexpr size_t kMaxLines = 4096;

  // `write` gets one line without its end, on the log's thread; it may block.
  explicit RequestLog(std::function<void(const std::string&)> write);
  ~RequestLog();  // Stop()

  // Writes what is queued and joins the thread; what comes later is never written. Idempotent, by
  // one thread at a time.
  void Stop();

  // Any thread, never blocks.
  void Ended(SequenceEnd end);
  void Refused(const std::string& reason, const std::string& request_id,
               const absl::Status& status);

 private:
  void Run();

  const std::function<void(const std::string&)> write_;
  Mutex mutex_;
  CondVar wake_;
  std::deque<SequenceEnd> ends_ GUARDED_BY(mutex_);
  RefusalTally refusals_ GUARDED_BY(mutex_);
  uint64_t dropped_ GUARDED_BY(mutex_) = 0;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace pergola
