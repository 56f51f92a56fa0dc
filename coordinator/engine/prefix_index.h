// Which KV block holds which content, so that sequences with equal beginnings share blocks. Knows
// keys and block ids, no sequence and no reference counts (block_pool.h).
//
// A key is SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast
// short-input PRF", 2012) over the key of the block before and the block's ids; the first block
// stands on a root made of the tenant's name. The secret is drawn per process. So a key names the
// tenant and all ids from position 0 on, and ids are not compared: without the secret nobody can
// find two contents of one key, and by chance it takes about 2^64 blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace pergola {

struct PrefixKey {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const PrefixKey& other) const { return low == other.low && high == other.high; }
};

// The 128-bit variant of SipHash-2-4 of `size` bytes under `secret`.
PrefixKey SipHash128(const PrefixKey& secret, const void* data, size_t size);

// The root of a tenant's chains.
PrefixKey PrefixRoot(const PrefixKey& secret, const std::string& tenant);
// The key of a block that holds `ids` and follows the block (or root) `before`. `count` is at most
// 128, the largest block.
PrefixKey PrefixNext(const PrefixKey& secret, const PrefixKey& before, const int32_t* ids,
                     size_t count);

class PrefixIndex {
 public:
  // For block ids 0 .. block_count-1; holds none.
  explicit PrefixIndex(uint32_t block_count);

  std::optional<uint32_t> Find(const PrefixKey& key) const;
  // False, with nothing changed, if another block has that key already. CHECKs that the block is
  // not in the index.
  bool Insert(const PrefixKey& key, uint32_t block);
  bool Contains(uint32_t block) const { return entered_[block]; }
  uint32_t size() const { return static_cast<uint32_t>(blocks_.size()); }

  // An entered block that nobody uses may be evicted; the one idle longest goes first.
  void Idle(uint32_t block);
  // It is used again.
  void Busy(uint32_t block);
  // Forgets the block that is idle longest; none if no entered block is idle.
  std::optional<uint32_t> Evict();
  uint32_t idle_count() const { return idle_count_; }

 private:
  struct KeyHash {
    // The keys are pseudo-random already.
    size_t operator()(const PrefixKey& key) const { return static_cast<size_t>(key.low); }
  };
  struct Links {
    uint32_t before;
    uint32_t after;
  };

  std::unordered_map<PrefixKey, uint32_t, KeyHash> blocks_;
  std::vector<PrefixKey> keys_;  // by block id; of entered blocks
  std::vector<bool> entered_;    // by block id
  // A ring of idle blocks, longest idle first; the element after the last block is its head, and a
  // block outside the ring is linked to itself.
  std::vector<Links> ring_;
  uint32_t idle_count_ = 0;
};

}  // namespace pergola
