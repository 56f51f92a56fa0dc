#include "coordinator/engine/block_pool.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {

BlockPool::BlockPool(uint32_t block_count) : used_(block_count, false) {
  free_.reserve(block_count);
  for (uint32_t id = block_count; id > 0; --id) free_.push_back(id - 1);
}

bool BlockPool::Take(uint32_t count, std::vector<uint32_t>* blocks) {
  if (count > free_.size()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    used_[free_.back()] = true;
    blocks->push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void BlockPool::Return(std::vector<uint32_t>* blocks) {
  // Backwards, so that taking them again gives the same order.
  for (auto it = blocks->rbegin(); it != blocks->rend(); ++it) {
    PERGOLA_CHECK_MSG(*it < used_.size() && used_[*it], absl::StrCat("block ", *it));
    used_[*it] = false;
    free_.push_back(*it);
  }
  blocks->clear();
}

}  // namespace pergola
