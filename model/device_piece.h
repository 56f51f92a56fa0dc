// How buffers lie in a GPU's memory: cut one after the other from a single allocation. Here because
// the memory plan must know it without kernels.
#pragma once

#include <cstdint>

namespace pergola {

// Where a piece may begin: what cudaMalloc promises of its own, and more than any kernel asks for.
inline constexpr int64_t kDevicePieceAlignment = 256;

// Bytes from the end of a piece to where the next one may begin.
inline int64_t DevicePadding(int64_t bytes) {
  return (kDevicePieceAlignment - bytes % kDevicePieceAlignment) % kDevicePieceAlignment;
}

}  // namespace pergola
