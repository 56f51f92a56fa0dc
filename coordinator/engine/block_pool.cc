#include "coordinator/engine/block_pool.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {

BlockPool::BlockPool(uint32_t block_count) : references_(block_count, 0), index_(block_count) {
  empty_.reserve(block_count);
  for (uint32_t id = block_count; id > 0; --id) empty_.push_back(id - 1);
}

bool BlockPool::Take(uint32_t count, std::vector<uint32_t>* blocks) {
  if (count > free_count()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    if (empty_.empty()) empty_.push_back(*index_.Evict());
    references_[empty_.back()] = 1;
    blocks->push_back(empty_.back());
    empty_.pop_back();
  }
  return true;
}

void BlockPool::Share(uint32_t block) {
  PERGOLA_CHECK_MSG(block < total() && (references_[block] > 0 || index_.Contains(block)),
                    absl::StrCat("block ", block));
  if (references_[block] == 0) index_.Busy(block);
  ++references_[block];
}

void BlockPool::Return(std::vector<uint32_t>* blocks) {
  // Backwards, so that taking them again gives the same order.
  for (auto it = blocks->rbegin(); it != blocks->rend(); ++it) {
    PERGOLA_CHECK_MSG(*it < total() && references_[*it] > 0, absl::StrCat("block ", *it));
    if (--references_[*it] > 0) continue;
    if (index_.Contains(*it)) {
      index_.Idle(*it);
    } else {
      empty_.push_back(*it);
    }
  }
  blocks->clear();
}

void BlockPool::Publish(const PrefixKey& key, uint32_t block) {
  PERGOLA_CHECK_MSG(block < total() && references_[block] > 0, absl::StrCat("block ", block));
  index_.Insert(key, block);
}

}  // namespace pergola
