#include "coordinator/engine/prefix_index.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {
namespace {

constexpr size_t kMaxBlockTokens = 128;

uint64_t Rotate(uint64_t value, int bits) {
  return (value << bits) | (value >> (64 - bits));
}

// The state and rounds of SipHash, section 2 of the paper; the 128-bit variant is of the authors'
// reference implementation: 0xee instead of nothing and of 0xff, and a second output after 0xdd.
struct SipState {
  uint64_t v0, v1, v2, v3;

  explicit SipState(const PrefixKey& secret)
      : v0(secret.low ^ 0x736f6d6570736575ULL),
        v1(secret.high ^ 0x646f72616e646f6dULL ^ 0xeeULL),
        v2(secret.low ^ 0x6c7967656e657261ULL),
        v3(secret.high ^ 0x7465646279746573ULL) {}

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v2 += v3;
      v1 = Rotate(v1, 13) ^ v0;
      v3 = Rotate(v3, 16) ^ v2;
      v0 = Rotate(v0, 32);
      v2 += v1;
      v0 += v3;
      v1 = Rotate(v1, 17) ^ v2;
      v3 = Rotate(v3, 21) ^ v0;
      v2 = Rotate(v2, 32);
    }
  }

  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }

  uint64_t Output(uint64_t* into, uint64_t mark) {
    *into ^= mark;
    Rounds(4);
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

uint64_t LittleEndian(const uint8_t* bytes, size_t count) {
  uint64_t word = 0;
  for (size_t i = 0; i < count; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  return word;
}

}  // namespace

PrefixKey SipHash128(const PrefixKey& secret, const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  SipState state(secret);
  size_t done = 0;
  for (; done + 8 <= size; done += 8) state.Absorb(LittleEndian(bytes + done, 8));
  state.Absorb(LittleEndian(bytes + done, size - done) | static_cast<uint64_t>(size) << 56);
  PrefixKey key;
  key.low = state.Output(&state.v2, 0xee);
  key.high = state.Output(&state.v1, 0xdd);
  return key;
}

PrefixKey PrefixRoot(const PrefixKey& secret, const std::string& tenant) {
  return SipHash128(secret, tenant.data(), tenant.size());
}

PrefixKey PrefixNext(const PrefixKey& secret, const PrefixKey& before, const int32_t* ids,
                     size_t count) {
  PERGOLA_CHECK_MSG(count <= kMaxBlockTokens, absl::StrCat(count, " ids"));
  uint8_t bytes[sizeof(PrefixKey) + kMaxBlockTokens * sizeof(int32_t)];
  std::memcpy(bytes, &before, sizeof before);
  std::memcpy(bytes + sizeof before, ids, count * sizeof(int32_t));
  return SipHash128(secret, bytes, sizeof before + count * sizeof(int32_t));
}

PrefixIndex::PrefixIndex(uint32_t block_count)
    : keys_(block_count), entered_(block_count, false), ring_(block_count + size_t{1}) {
  for (uint32_t block = 0; block <= block_count; ++block) ring_[block] = {block, block};
}

std::optional<uint32_t> PrefixIndex::Find(const PrefixKey& key) const {
  const auto it = blocks_.find(key);
  if (it == blocks_.end()) return std::nullopt;
  return it->second;
}

bool PrefixIndex::Insert(const PrefixKey& key, uint32_t block) {
  PERGOLA_CHECK_MSG(!entered_[block], absl::StrCat("block ", block));
  if (!blocks_.emplace(key, block).second) return false;
  keys_[block] = key;
  entered_[block] = true;
  return true;
}

void PrefixIndex::Idle(uint32_t block) {
  PERGOLA_CHECK_MSG(entered_[block] && ring_[block].after == block, absl::StrCat("block ", block));
  const auto head = static_cast<uint32_t>(entered_.size());
  const uint32_t last = ring_[head].before;
  ring_[block] = {last, head};
  ring_[last].after = block;
  ring_[head].before = block;
  ++idle_count_;
}

void PrefixIndex::Busy(uint32_t block) {
  PERGOLA_CHECK_MSG(ring_[block].after != block, absl::StrCat("block ", block));
  const Links links = ring_[block];
  ring_[links.before].after = links.after;
  ring_[links.after].before = links.before;
  ring_[block] = {block, block};
  --idle_count_;
}

std::optional<uint32_t> PrefixIndex::Evict() {
  if (idle_count_ == 0) return std::nullopt;
  const uint32_t block = ring_[entered_.size()].after;
  Busy(block);
  blocks_.erase(keys_[block]);
  entered_[block] = false;
  return block;
}

}  // namespace pergola
