#include "worker/step/token_board.h"

#include <utility>

#include "base/status.h"

namespace pergola {

void TokenBoard::Record(uint64_t plan_id,
                        const google::protobuf::RepeatedPtrField<v1::EntryResult>& entries) {
  Plan plan = {plan_id, {}};
  plan.entries.reserve(entries.size());
  for (const v1::EntryResult& entry : entries) {
    if (entry.status() != v1::ENTRY_STATUS_OK) {
      plan.entries.push_back({Kind::kNan, 0});
    } else if (entry.ids().empty()) {
      plan.entries.push_back({Kind::kNothing, 0});
    } else {
      plan.entries.push_back({Kind::kToken, entry.ids(entry.ids_size() - 1)});
    }
  }
  latest_ = plan_id;
  board_.push_back(std::move(plan));
  while (static_cast<int>(board_.size()) > plans_) board_.pop_front();
}

void TokenBoard::Clear() {
  latest_ = 0;
  board_.clear();
}

absl::StatusOr<int32_t> TokenBoard::Resolve(const v1::TokenRef& reference) const {
  for (const Plan& plan : board_) {
    if (plan.plan_id != reference.plan_id()) continue;
    if (reference.entry() >= plan.entries.size()) {
      return absl::InvalidArgumentError(absl::StrCat("from.entry is ", reference.entry(), "; plan ",
                                                     plan.plan_id, " had ", plan.entries.size(),
                                                     " entries"));
    }
    const Last& last = plan.entries[reference.entry()];
    if (last.kind == Kind::kNothing) {
      return absl::InvalidArgumentError(absl::StrCat("from.entry is ", reference.entry(),
                                                     "; that entry of plan ", plan.plan_id,
                                                     " sampled no token"));
    }
    return last.id;
  }
  return absl::InvalidArgumentError(absl::StrCat("from.plan_id is ", reference.plan_id(),
                                                 "; remembered are the last ", plans_,
                                                 " plans up to ", latest_));
}

}  // namespace pergola
