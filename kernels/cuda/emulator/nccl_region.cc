#include "kernels/cuda/emulator/nccl_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/check.h"

namespace pergola::emulator {

struct NcclRegion::Header {
  std::atomic<uint32_t> ranks;  // as the first one said
  std::atomic<uint32_t> joined;
  std::atomic<uint32_t> aborted;
  RankCell cells[kMostRanks];
};

std::string NcclCall::ToString() const {
  const char* names[] = {"all-reduce", "all-gather", "broadcast", "send/receive"};
  return std::string(names[kind]) + " of " + std::to_string(count) + " values of type " +
         std::to_string(type) + (kind == kBroadcast ? " from rank " + std::to_string(root) : "") +
         (captured != 0 ? ", captured" : "");
}

size_t NcclRegion::Bytes() const {
  const size_t n = ranks_;
  return sizeof(Header) + 2 * n * kChunkBytes + n * n * sizeof(Channel);
}

// A new file is all zeros, which is the state before the first call.
NcclRegion::NcclRegion(const std::string& name, int rank, int ranks, const std::string& host,
                       int device)
    : ranks_(ranks) {
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  PERGOLA_CHECK_MSG(fd >= 0, name + ": " + std::strerror(errno));
  // Reserved now, so that a full /dev/shm shows here.
  const int reserved = posix_fallocate(fd, 0, static_cast<off_t>(Bytes()));
  PERGOLA_CHECK_MSG(reserved == 0, name + ": " + std::strerror(reserved));
  void* memory = mmap(nullptr, Bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  PERGOLA_CHECK_MSG(memory != MAP_FAILED, name + ": " + std::strerror(errno));
  close(fd);
  memory_ = static_cast<uint8_t*>(memory);
  auto* header = reinterpret_cast<Header*>(memory_);
  uint32_t said = 0;
  if (!header->ranks.compare_exchange_strong(said, static_cast<uint32_t>(ranks))) {
    PERGOLA_CHECK_MSG(static_cast<int>(said) == ranks,
                      "rank " + std::to_string(rank) + " says " + std::to_string(ranks) +
                          " ranks, another says " + std::to_string(said));
  }
  std::strncpy(cell(rank).host, host.c_str(), sizeof(RankCell::host) - 1);
  cell(rank).device = device;
  const uint32_t before = header->joined.fetch_add(1);
  PERGOLA_CHECK_MSG(static_cast<int>(before) < ranks, "more ranks join than there are");
  if (static_cast<int>(before) == ranks - 1) shm_unlink(name.c_str());
  while (static_cast<int>(header->joined.load()) < ranks) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

NcclRegion::~NcclRegion() {
  munmap(memory_, Bytes());
}

NcclRegion::RankCell& NcclRegion::cell(int rank) const {
  return reinterpret_cast<Header*>(memory_)->cells[rank];
}

uint8_t* NcclRegion::Chunk(uint64_t round, int rank) const {
  return memory_ + sizeof(Header) + (round % 2 * ranks_ + rank) * kChunkBytes;
}

NcclRegion::Channel& NcclRegion::channel(int from, int to) const {
  auto* first = reinterpret_cast<Channel*>(memory_ + sizeof(Header) +
                                           2 * static_cast<size_t>(ranks_) * kChunkBytes);
  return first[static_cast<size_t>(from) * ranks_ + to];
}

std::atomic<uint32_t>& NcclRegion::aborted() const {
  return reinterpret_cast<Header*>(memory_)->aborted;
}

}  // namespace pergola::emulator
