#include "coordinator/engine/measurements.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace pergola {
namespace {

constexpr double kUsPerSecond = 1e6;

}  // namespace

void TimeHistogram::Observe(int64_t total_us, uint64_t times) {
  if (times == 0) return;
  const auto total = static_cast<uint64_t>(std::max<int64_t>(0, total_us));
  // Rounded up: a share of 100.5 us is beyond the bound of 100.
  const auto each = static_cast<int64_t>(total / times + (total % times != 0 ? 1 : 0));
  const auto* bound = std::lower_bound(kBoundsUs.begin(), kBoundsUs.end(), each);
  counts_[static_cast<size_t>(bound - kBoundsUs.begin())] += times;
  sum_us_ += total;
}

uint64_t TimeHistogram::count() const {
  return std::accumulate(counts_.begin(), counts_.end(), uint64_t{0});
}

void TimeHistogram::CopyTo(v1::Histogram* out) const {
  out->clear_bounds();
  for (const int64_t bound : kBoundsUs) {
    out->add_bounds(static_cast<double>(bound) / kUsPerSecond);
  }
  out->mutable_counts()->Assign(counts_.begin(), counts_.end());
  out->set_sum(static_cast<double>(sum_us_) / kUsPerSecond);
}

void TokenGaps::OnToken(TimeUs now, TimeHistogram* gaps) {
  if (last_ == kNever) {
    last_ = now;
  } else if (now > last_) {
    OnEnd(gaps);
    gap_us_ = now - last_;
    sharing_ = 1;
    last_ = now;
  } else if (sharing_ > 0) {
    ++sharing_;
  }
}

void TokenGaps::OnEnd(TimeHistogram* gaps) {
  gaps->Observe(gap_us_, sharing_);
  sharing_ = 0;
}

void Measurements::CountEnd(absl::StatusCode code, v1::FinishReason reason) {
  if (code == absl::StatusCode::kOk) {
    ++finishes_[std::min<size_t>(static_cast<size_t>(reason), finishes_.size() - 1)];
  } else {
    ++errors_[std::min<size_t>(static_cast<size_t>(code), errors_.size() - 1)];
  }
}

void Measurements::CopyTo(v1::StatusResponse* status) const {
  first_token.CopyTo(status->mutable_first_token());
  token_gap.CopyTo(status->mutable_token_gap());
  queue_wait.CopyTo(status->mutable_queue_wait());
  status->set_bad_logits(bad_logits);
  status->set_repeated_passes(repeated_passes);
  status->set_prompt_tokens_total(prompt_tokens);
  const auto add = [status](absl::StatusCode code, const char* finish, uint64_t count) {
    if (count == 0) return;
    v1::EndCount& end = *status->add_ended();
    end.set_status(absl::StatusCodeToString(code));
    end.set_finish(finish);
    end.set_count(count);
  };
  for (size_t i = 0; i < finishes_.size(); ++i) {
    add(absl::StatusCode::kOk, FinishName(static_cast<v1::FinishReason>(i)), finishes_[i]);
  }
  for (size_t i = 0; i < errors_.size(); ++i) add(static_cast<absl::StatusCode>(i), "", errors_[i]);
}

const char* FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH:
      return "LENGTH";
    case v1::FINISH_REASON_EOS:
      return "EOS";
    case v1::FINISH_REASON_STOP_ID:
      return "STOP_ID";
    case v1::FINISH_REASON_STOP_STRING:
      return "STOP_STRING";
    default:
      return "";
  }
}

}  // namespace pergola
