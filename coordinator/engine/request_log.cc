#include "coordinator/engine/request_log.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "coordinator/engine/measurements.h"

namespace pergola {
namespace {

// Of an error's text: enough for a sentence with its numbers.
constexpr size_t kMaxErrorBytes = 512;

void AppendMs(const char* name, TimeUs from, TimeUs to, std::string* line) {
  if (to == kNever) return;
  absl::StrAppendFormat(line, " %s=%.1f", name, static_cast<double>(to - from) / 1e3);
}

std::string ErrorOf(const absl::Status& status) {
  return Quoted(std::string(ToStd(status.message()).substr(0, kMaxErrorBytes)));
}

}  // namespace

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte >= 0x20 && byte < 0x7F) {
      quoted += c;
    } else {
      absl::StrAppendFormat(&quoted, "\\x%02x", byte);
    }
  }
  quoted += '"';
  return quoted;
}

std::string EndLine(const SequenceEnd& end) {
  std::string line = absl::StrCat(
      "request id=", Quoted(end.request_id), " index=", end.index, " tenant=", Quoted(end.tenant),
      " prompt_tokens=", end.prompt_tokens, " new_tokens=", end.new_tokens);
  AppendMs("queue_ms", end.submitted, end.first_planned, &line);
  AppendMs("ttft_ms", end.submitted, end.first_token, &line);
  AppendMs("total_ms", end.submitted, end.ended, &line);
  absl::StrAppend(&line, " status=", absl::StatusCodeToString(end.status.code()));
  if (end.status.ok()) {
    absl::StrAppend(&line, " finish=", FinishName(end.finish));
  } else {
    absl::StrAppend(&line, " error=", ErrorOf(end.status));
  }
  return line;
}

void RefusalTally::Add(const std::string& reason, const std::string& request_id,
                       const absl::Status& status) {
  ++counts_[reason];
  last_ = absl::StrCat("last_id=", Quoted(request_id), " last_error=", ErrorOf(status));
}

std::optional<std::string> RefusalTally::Take(TimeUs now) {
  if (counts_.empty() || now < next_) return std::nullopt;
  uint64_t total = 0;
  for (const auto& [reason, count] : counts_) total += count;
  std::string line = absl::StrCat("refused count=", total);
  for (const auto& [reason, count] : counts_) absl::StrAppend(&line, " ", reason, "=", count);
  absl::StrAppend(&line, " ", last_);
  counts_.clear();
  next_ = now > kNever - kIntervalUs ? kNever : now + kIntervalUs;
  return line;
}

RequestLog::RequestLog(std::function<void(const std::string&)> write)
    : write_(std::move(write)), thread_([this] { Run(); }) {}

RequestLog::~RequestLog() {
  Stop();
}

void RequestLog::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    wake_.NotifyOne();
  }
  if (thread_.joinable()) thread_.join();
}

void RequestLog::Ended(SequenceEnd end) {
  MutexLock lock(mutex_);
  if (ends_.size() >= kMaxLines) {
    ++dropped_;
    return;
  }
  ends_.push_back(std::move(end));
  if (ends_.size() == 1) wake_.NotifyOne();
}

void RequestLog::Refused(const std::string& reason, const std::string& request_id,
                         const absl::Status& status) {
  MutexLock lock(mutex_);
  const bool first = refusals_.next() == kNever;
  refusals_.Add(reason, request_id, status);
  if (first) wake_.NotifyOne();
}

void RequestLog::Run() {
  for (bool last = false; !last;) {
    std::deque<SequenceEnd> ends;
    std::optional<std::string> refusals;
    uint64_t dropped = 0;
    {
      MutexLock lock(mutex_);
      while (ends_.empty() && !stopping_ && refusals_.next() > SteadyNowUs()) {
        if (refusals_.next() == kNever) {
          wake_.Wait(mutex_);
        } else {
          const std::chrono::microseconds until(refusals_.next());
          wake_.WaitUntil(mutex_, std::chrono::steady_clock::time_point(until));
        }
      }
      last = stopping_;
      ends.swap(ends_);
      // At the end what is gathered is told, whatever the time.
      refusals = refusals_.Take(last ? kNever : SteadyNowUs());
      dropped = std::exchange(dropped_, 0);
    }
    for (const SequenceEnd& end : ends) write_(EndLine(end));
    if (refusals) write_(*refusals);
    if (dropped > 0) write_(absl::StrCat("the log was too slow: request lines dropped=", dropped));
  }
}

}  // namespace pergola
