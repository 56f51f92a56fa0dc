// The one allocation of a rank's device memory, and the pieces that are cut off it. Counts only:
// who made the allocation gives it back.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"
#include "model/device_piece.h"

namespace pergola {

class DeviceArena {
 public:
  bool reserved() const { return current_.memory != nullptr; }
  int64_t bytes() const { return current_.bytes; }
  int64_t bytes_left() const { return current_.bytes - current_.cut; }

  // Pieces are cut off `memory` from now on (nullptr: off nothing). Returns what was replaced if
  // none of its pieces is in use, for the caller to free, else nullptr.
  uint8_t* Replace(uint8_t* memory, int64_t bytes) {
    uint8_t* unused = nullptr;
    if (current_.pieces > 0) {
      replaced_.push_back(current_);
    } else {
      unused = current_.memory;
    }
    current_ = {memory, bytes, 0, 0};
    return unused;
  }

  // nullptr if that many bytes and their padding are not left.
  uint8_t* Cut(int64_t bytes) {
    const int64_t taken = bytes + DevicePadding(bytes);
    if (taken > bytes_left()) return nullptr;
    uint8_t* piece = current_.memory + current_.cut;
    current_.cut += taken;
    ++current_.pieces;
    return piece;
  }

  bool Holds(const uint8_t* memory) const {
    if (current_.Holds(memory)) return true;
    for (const Block& block : replaced_) {
      if (block.Holds(memory)) return true;
    }
    return false;
  }
  // Takes a piece back. Returns the allocation, for the caller to free, if it was the last one of
  // it, else nullptr.
  uint8_t* Return(const uint8_t* piece) {
    if (current_.Holds(piece)) {
      if (--current_.pieces > 0) return nullptr;
      return Replace(nullptr, 0);
    }
    for (auto block = replaced_.begin(); block != replaced_.end(); ++block) {
      if (!block->Holds(piece)) continue;
      if (--block->pieces > 0) return nullptr;
      uint8_t* memory = block->memory;
      replaced_.erase(block);
      return memory;
    }
    PERGOLA_CHECK(false);
  }

  // Every allocation that is not given back.
  std::vector<uint8_t*> All() const {
    std::vector<uint8_t*> all;
    if (current_.memory != nullptr) all.push_back(current_.memory);
    for (const Block& block : replaced_) all.push_back(block.memory);
    return all;
  }

 private:
  struct Block {
    uint8_t* memory = nullptr;
    int64_t bytes = 0;
    int64_t cut = 0;
    int64_t pieces = 0;  // in use

    bool Holds(const uint8_t* at) const { return at >= memory && at < memory + bytes; }
  };
  Block current_;
  std::vector<Block> replaced_;  // with pieces in use
};

}  // namespace pergola
