// Barriers, shuffles and votes. All take all 32 lanes: a mask other than 0xffffffff ends the
// process.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/emulator/grid.h"

namespace pergola::emulator {

enum class ShuffleKind : uint8_t { kIndex, kUp, kDown, kXor };

struct Shuffle {
  ShuffleKind kind;
  unsigned operand;
  int width;
  uint64_t value;
  uint64_t result;
};
inline void ComputeShuffle(Shuffle* const* lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    Shuffle& mine = *lanes[lane];
    const int begin = lane / mine.width * mine.width, end = begin + mine.width;
    const auto operand = static_cast<int>(mine.operand & 31);
    int from = lane;
    switch (mine.kind) {
      case ShuffleKind::kIndex:
        from = begin + operand % mine.width;
        break;
      case ShuffleKind::kUp:
        from = lane - operand;
        if (from < begin) from = lane;
        break;
      case ShuffleKind::kDown:
        from = lane + operand;
        if (from >= end) from = lane;
        break;
      case ShuffleKind::kXor:
        from = lane ^ operand;
        if (from >= end) from = lane;
        break;
    }
    mine.result = lanes[from]->value;
  }
}

inline void CheckMask(unsigned mask) {
  if (mask != 0xffffffff) KernelError("a warp function with a mask other than 0xffffffff");
}

template <typename T>
T RunShuffle(const char* operation, unsigned mask, ShuffleKind kind, T value, unsigned operand,
             int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  CheckMask(mask);
  if (width < 1 || width > kLanes || (width & (width - 1)) != 0) {
    KernelError("a shuffle's width is no power of two up to 32");
  }
  Shuffle request = {kind, operand, width, 0, 0};
  std::memcpy(&request.value, &value, sizeof(T));
  WarpCompute<Shuffle, ComputeShuffle>(operation, &request);
  std::memcpy(&value, &request.result, sizeof(T));
  return value;
}

struct Vote {
  bool predicate;
  unsigned ballot;
};
inline void ComputeVote(Vote* const* lanes) {
  unsigned ballot = 0;
  for (int i = 0; i < kLanes; ++i) ballot |= lanes[i]->predicate ? 1U << i : 0;
  for (int i = 0; i < kLanes; ++i) lanes[i]->ballot = ballot;
}
inline unsigned RunVote(const char* operation, unsigned mask, int predicate) {
  CheckMask(mask);
  Vote request = {predicate != 0, 0};
  WarpCompute<Vote, ComputeVote>(operation, &request);
  return request.ballot;
}

template <typename T>
struct Reduction {
  T value, result;
};
template <typename T>
void ComputeSum(Reduction<T>* const* lanes) {
  T sum = 0;
  for (int i = 0; i < kLanes; ++i) sum = static_cast<T>(sum + lanes[i]->value);
  for (int i = 0; i < kLanes; ++i) lanes[i]->result = sum;
}
template <typename T>
void ComputeMax(Reduction<T>* const* lanes) {
  T largest = lanes[0]->value;
  for (int i = 1; i < kLanes; ++i) {
    if (largest < lanes[i]->value) largest = lanes[i]->value;
  }
  for (int i = 0; i < kLanes; ++i) lanes[i]->result = largest;
}
template <typename T>
void ComputeMin(Reduction<T>* const* lanes) {
  T smallest = lanes[0]->value;
  for (int i = 1; i < kLanes; ++i) {
    if (lanes[i]->value < smallest) smallest = lanes[i]->value;
  }
  for (int i = 0; i < kLanes; ++i) lanes[i]->result = smallest;
}

}  // namespace pergola::emulator

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

inline void __syncthreads() {
  pergola::emulator::BlockBarrier("__syncthreads", 0);
}
inline int __syncthreads_count(int predicate) {
  return pergola::emulator::BlockBarrier("__syncthreads_count", predicate);
}
inline int __syncthreads_or(int predicate) {
  return pergola::emulator::BlockBarrier("__syncthreads_or", predicate) != 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate) {
  return pergola::emulator::BlockBarrier("__syncthreads_and", predicate == 0 ? 1 : 0) == 0 ? 1 : 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
  pergola::emulator::RunVote("__syncwarp", mask, 0);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return pergola::emulator::RunShuffle("__shfl_sync", mask, pergola::emulator::ShuffleKind::kIndex,
                                       value, static_cast<unsigned>(lane), width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return pergola::emulator::RunShuffle("__shfl_up_sync", mask, pergola::emulator::ShuffleKind::kUp,
                                       value, distance, width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return pergola::emulator::RunShuffle(
      "__shfl_down_sync", mask, pergola::emulator::ShuffleKind::kDown, value, distance, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return pergola::emulator::RunShuffle("__shfl_xor_sync", mask,
                                       pergola::emulator::ShuffleKind::kXor, value,
                                       static_cast<unsigned>(lane_mask), width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return pergola::emulator::RunVote("__ballot_sync", mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate) {
  return pergola::emulator::RunVote("__any_sync", mask, predicate) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return pergola::emulator::RunVote("__all_sync", mask, predicate) == 0xffffffff ? 1 : 0;
}
// int and unsigned only, sm_80.
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
  pergola::emulator::RequireCapability("__reduce_add_sync", 80);
  pergola::emulator::CheckMask(mask);
  pergola::emulator::Reduction<T> request = {value, 0};
  pergola::emulator::WarpCompute<pergola::emulator::Reduction<T>, pergola::emulator::ComputeSum<T>>(
      "__reduce_add_sync", &request);
  return request.result;
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
  pergola::emulator::RequireCapability("__reduce_max_sync", 80);
  pergola::emulator::CheckMask(mask);
  pergola::emulator::Reduction<T> request = {value, 0};
  pergola::emulator::WarpCompute<pergola::emulator::Reduction<T>, pergola::emulator::ComputeMax<T>>(
      "__reduce_max_sync", &request);
  return request.result;
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
  pergola::emulator::RequireCapability("__reduce_min_sync", 80);
  pergola::emulator::CheckMask(mask);
  pergola::emulator::Reduction<T> request = {value, 0};
  pergola::emulator::WarpCompute<pergola::emulator::Reduction<T>, pergola::emulator::ComputeMin<T>>(
      "__reduce_min_sync", &request);
  return request.result;
}

[[noreturn]] inline void __trap() {
  pergola::emulator::KernelError("__trap");
}

// NOLINTEND(bugprone-reserved-identifier)
