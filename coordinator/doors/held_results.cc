#include "coordinator/doors/held_results.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {

bool ResultBudget::TryTake(size_t bytes) {
  size_t used = used_.load();
  while (bytes <= limit_ - used) {
    if (used_.compare_exchange_weak(used, used + bytes)) return true;
  }
  return false;
}

HeldResults& HeldResults::operator=(HeldResults&& other) noexcept {
  if (this == &other) return *this;
  Clear();
  budget_ = other.budget_;
  limit_ = other.limit_;
  held_ = std::exchange(other.held_, 0);
  return *this;
}

absl::Status HeldResults::Add(size_t bytes) {
  PERGOLA_CHECK(budget_ != nullptr);
  if (bytes > limit_ - held_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the call's results that wait for each other take ", held_ + bytes, " bytes, the limit is ",
        limit_, "; ask for fewer tokens, sequences, items or log-probabilities"));
  }
  if (!budget_->TryTake(bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the results that wait in all calls take more than the limit of ",
                     budget_->limit(), " bytes; try again later, or use Generate without best_of"));
  }
  held_ += bytes;
  return absl::OkStatus();
}

void HeldResults::Clear() {
  if (held_ > 0) budget_->Give(std::exchange(held_, 0));
}

}  // namespace pergola
