// Which KV blocks of a group are free. The coordinator owns every block id (DESIGN I1); bytes live
// on the workers.
#pragma once

#include <cstdint>
#include <vector>

namespace pergola {

class BlockPool {
 public:
  // Ids 0 .. block_count-1, all free.
  explicit BlockPool(uint32_t block_count);

  uint32_t total() const { return static_cast<uint32_t>(used_.size()); }
  uint32_t free_count() const { return static_cast<uint32_t>(free_.size()); }
  uint32_t used_count() const { return total() - free_count(); }

  // Appends `count` block ids to `blocks`; false, with nothing changed, if fewer are free.
  bool Take(uint32_t count, std::vector<uint32_t>* blocks);
  // Gives all of `blocks` back and clears it. CHECKs that each was taken.
  void Return(std::vector<uint32_t>* blocks);

 private:
  std::vector<uint32_t> free_;  // a stack: the block used last is warm in the workers' caches
  std::vector<bool> used_;      // by block id; catches a block that is returned twice
};

}  // namespace pergola
