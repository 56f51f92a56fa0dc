// The memory in which the ranks of an emulated NCCL communicator meet: a file that is unlinked as
// soon as all have it. Private to the emulator.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace pergola::emulator {

// What a call says of itself; the same on all ranks that take part.
struct NcclCall {
  enum Kind : int32_t { kAllReduce, kAllGather, kBroadcast, kSendReceive };
  Kind kind = kAllReduce;
  int32_t type = 0;
  uint64_t count = 0;
  int32_t captured = 0;
  int32_t root = 0;  // of a broadcast

  bool operator==(const NcclCall& other) const {
    return kind == other.kind && type == other.type && count == other.count &&
           captured == other.captured && root == other.root;
  }
  std::string ToString() const;
};

class NcclRegion {
 public:
  static constexpr int kMostRanks = 16;
  static constexpr size_t kChunkBytes = 32 << 10;

  // One rank's side of the collectives' rounds; a round has one chunk of each rank.
  struct RankCell {
    std::atomic<uint64_t> written;  // rounds
    std::atomic<uint64_t> read;
    NcclCall calls[2];  // of the round, modulo 2
    char host[64];
    int32_t device;
  };
  // From one rank to another: one chunk at a time.
  struct Channel {
    std::atomic<uint64_t> sent;
    std::atomic<uint64_t> received;
    NcclCall call;
    uint8_t bytes[kChunkBytes];
  };

  // Returns when all ranks have joined. CHECKs that they agree on their number.
  NcclRegion(const std::string& name, int rank, int ranks, const std::string& host, int device);
  ~NcclRegion();
  NcclRegion(const NcclRegion&) = delete;
  NcclRegion& operator=(const NcclRegion&) = delete;

  RankCell& cell(int rank) const;
  uint8_t* Chunk(uint64_t round, int rank) const;
  Channel& channel(int from, int to) const;
  // Set by a rank that gave up.
  std::atomic<uint32_t>& aborted() const;

 private:
  struct Header;
  size_t Bytes() const;

  const int ranks_;
  uint8_t* memory_ = nullptr;
};

}  // namespace pergola::emulator
