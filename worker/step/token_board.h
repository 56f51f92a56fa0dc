// The tokens that the last few plans sampled, so that a plan may say "the token of entry e of plan
// k" (DESIGN I3). One per rank of the first stage and of the last; main thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/repeated_field.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

// What an entry sampled last; 0 where it has no token.
int32_t LastToken(const v1::EntryResult& entry);

class TokenBoard {
 public:
  // Remembers the last `plans` plans.
  explicit TokenBoard(int plans) : plans_(plans) {}

  // The next plan, begun but not finished: until its results are recorded, what an entry samples
  // is TokenOfEntry(its number) (kernels/decoder_ops.h). Nothing comes between Expect and Record.
  void Expect(const v1::StepPlan& plan);
  // The results of the next plan, in plan order.
  void Record(uint64_t plan_id, const google::protobuf::RepeatedPtrField<v1::EntryResult>& entries);
  // The newest plan recorded; 0: none.
  uint64_t latest() const { return latest_; }
  void Clear();

  // What the entry sampled last. An entry that ended with ENTRY_STATUS_NAN has no token: its
  // sequence ends, what the plans sent ahead compute for it is dropped, and id 0 serves.
  // INVALID_ARGUMENT if the plan is not remembered or the entry cannot have a token.
  absl::StatusOr<int32_t> Resolve(const v1::TokenRef& reference) const;

 private:
  enum class Kind : uint8_t { kToken, kNan, kNothing };
  struct Last {
    Kind kind;
    int32_t id;  // or TokenOfEntry
  };
  struct Plan {
    uint64_t plan_id;
    std::vector<Last> entries;
  };

  void Add(Plan plan);

  const int plans_;
  uint64_t latest_ = 0;
  std::deque<Plan> board_;
};

}  // namespace pergola
