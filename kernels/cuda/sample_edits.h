// Which logits of a row steps 1 to 5 of kernels/sample.h change, and how: for EditLogitsCuda.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/sample_job.h"
#include "kernels/sample.h"
#include "model/layout.h"

namespace pergola {

// Whether steps 1 to 5 may change a logit of the row (step 6, the mask, is no list).
inline bool ListsEdits(const SampleRow& row) {
  return row.bias_count > 0 || row.looks_back() || row.suppresses();
}
// At least as many as the edits of any slice of at most `slice` ids: the same on every rank.
int64_t EditBound(const SampleRow& row, int64_t slice);

class EditLister {
 public:
  // `slice`: the ids of this rank. `history`: of the longest row. Allocates all it will ever need.
  EditLister(const Range& slice, int64_t history);
  int64_t bytes() const;
  static int64_t Bytes(const Range& slice, int64_t history);

  // The edits of a row into `edits`, each id once, in no order; their number.
  int64_t List(const SampleRow& row, SampleEdit* edits);

 private:
  // The edit of a global id; nullptr if it is not in the slice.
  SampleEdit* Find(int32_t id);

  const Range slice_;
  std::vector<int32_t> place_;    // [slice] 1 + where the id's edit is; 0: nowhere
  std::vector<int32_t> borders_;  // [history]
  SampleEdit* edits_ = nullptr;   // of the row in hand
  int64_t count_ = 0;
};

}  // namespace pergola
