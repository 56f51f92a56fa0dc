// The dynamic shared memory of the block that runs: a reserve larger than any launch may ask for,
// so that a write behind the launch's part can be seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/sanitizer.h"

namespace pergola::emulator {

class SharedMemory {
 public:
  SharedMemory() : memory_(new Line[kReserveBytes / sizeof(Line)]) {
    std::memset(data(), 0xff, kReserveBytes);
  }
  // A block with `bytes` begins: they hold 0xff.
  void Begin(int64_t bytes) {
    AsanUnpoison(data(), kReserveBytes);
    std::memset(data(), 0xff, static_cast<size_t>(std::max(bytes, bytes_)));
    bytes_ = bytes;
    AsanPoison(data() + bytes_, kReserveBytes - bytes_);
  }
  // Whether a write hit the kWatchedBytes behind the block's part.
  bool WrittenBeyond() {
    AsanUnpoison(data(), kReserveBytes);
    // All bytes are equal if each equals the next.
    const uint8_t* end = data() + bytes_;
    return *end != 0xff || std::memcmp(end, end + 1, kWatchedBytes - 1) != 0;
  }
  // Whether some of [pointer, pointer + bytes) lies in the reserve but not in the block's part.
  bool Beyond(const void* pointer, int64_t bytes) const {
    const auto begin = reinterpret_cast<uintptr_t>(memory_.get());
    const auto at = reinterpret_cast<uintptr_t>(pointer);
    if (at < begin || at >= begin + static_cast<uintptr_t>(kReserveBytes)) return false;
    return static_cast<int64_t>(at - begin) + bytes > bytes_;
  }
  uint8_t* data() { return memory_[0].bytes; }

 private:
  static constexpr int64_t kWatchedBytes = 4096;
  static constexpr int64_t kReserveBytes = kMaxDynamicSharedBytes + 2 * kWatchedBytes;
  struct alignas(128) Line {
    uint8_t bytes[128];
  };
  std::unique_ptr<Line[]> memory_;
  int64_t bytes_ = 0;
};

}  // namespace pergola::emulator
