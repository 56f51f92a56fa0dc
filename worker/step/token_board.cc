#include "worker/step/token_board.h"

#include <utility>

#include "base/status.h"
#include "kernels/decoder_ops.h"

namespace pergola {

int32_t LastToken(const v1::EntryResult& entry) {
  const bool has = entry.status() == v1::ENTRY_STATUS_OK && !entry.ids().empty();
  return has ? entry.ids(entry.ids_size() - 1) : 0;
}

void TokenBoard::Add(Plan plan) {
  // Its results come where they are expected.
  if (!board_.empty() && board_.back().plan_id == plan.plan_id) board_.pop_back();
  board_.push_back(std::move(plan));
  while (static_cast<int>(board_.size()) > plans_) board_.pop_front();
}

void TokenBoard::Expect(const v1::StepPlan& expected) {
  Plan plan = {expected.plan_id(), {}};
  plan.entries.reserve(expected.entries_size());
  for (int e = 0; e < expected.entries_size(); ++e) {
    const bool samples = !expected.entries(e).logits_at().empty();
    plan.entries.push_back({samples ? Kind::kToken : Kind::kNothing, TokenOfEntry(e)});
  }
  Add(std::move(plan));
}

void TokenBoard::Record(uint64_t plan_id,
                        const google::protobuf::RepeatedPtrField<v1::EntryResult>& entries) {
  Plan plan = {plan_id, {}};
  plan.entries.reserve(entries.size());
  for (const v1::EntryResult& entry : entries) {
    const Kind kind = entry.status() != v1::ENTRY_STATUS_OK ? Kind::kNan
                      : entry.ids().empty()                 ? Kind::kNothing
                                                            : Kind::kToken;
    plan.entries.push_back({kind, LastToken(entry)});
  }
  latest_ = plan_id;
  Add(std::move(plan));
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
