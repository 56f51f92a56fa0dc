// Which KV blocks of a group are free, who counts on the others, and what those hold that nobody
// counts on any more. The coordinator owns every block id (DESIGN I1); bytes live on the workers.
//
// A block is referenced (by one sequence or several), or cached (by none, but its content is in the
// prefix index), or empty. Cached blocks count as free: they are taken, the one idle longest first,
// when no empty one is left.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "coordinator/engine/prefix_index.h"

namespace pergola {

class BlockPool {
 public:
  // Ids 0 .. block_count-1, all empty.
  explicit BlockPool(uint32_t block_count);

  uint32_t total() const { return static_cast<uint32_t>(references_.size()); }
  uint32_t free_count() const { return static_cast<uint32_t>(empty_.size()) + cached_count(); }
  uint32_t cached_count() const { return index_.idle_count(); }
  uint32_t used_count() const { return total() - free_count(); }  // referenced
  uint32_t references(uint32_t block) const { return references_[block]; }
  const PrefixIndex& index() const { return index_; }

  // Appends `count` block ids, each with one reference, to `blocks`; false, with nothing changed,
  // if fewer are free.
  bool Take(uint32_t count, std::vector<uint32_t>* blocks);
  // One reference more of a block that is referenced or cached (CHECK).
  void Share(uint32_t block);
  // Gives one reference of each of `blocks` back and clears it. CHECKs that each had one. Of blocks
  // that become cached the last ones are evicted first: a chain is of no use without its beginning.
  void Return(std::vector<uint32_t>* blocks);

  // A plan that was sent fills the referenced block with the content of `key`. Nothing happens if
  // another block holds that already.
  void Publish(const PrefixKey& key, uint32_t block);
  // The block that holds it.
  std::optional<uint32_t> Find(const PrefixKey& key) const { return index_.Find(key); }

 private:
  std::vector<uint32_t> empty_;       // a stack: the block used last is warm in the workers' caches
  std::vector<uint32_t> references_;  // by block id
  PrefixIndex index_;
};

}  // namespace pergola
