// Matrix fragments and warp sums as warp collectives: each lane deposits pointers to its registers,
// the last lane computes for all. The layouts are in kernels/cuda/device.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/small_float.h"

namespace pergola::emulator {

struct Add {
  static float Combine(float a, float b) { return a + b; }
};
struct Max {
  static float Combine(float a, float b) { return std::fmax(a, b); }
};

// As device.cuh's: in steps of distance 16, 8, 4, 2, 1.
template <typename Operation>
void ComputeButterfly(float* const* lanes) {
  float now[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; ++i) now[i] = *lanes[i];
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < kLanes; ++i) next[i] = Operation::Combine(now[i], now[i ^ distance]);
    std::memcpy(now, next, sizeof(now));
  }
  for (int i = 0; i < kLanes; ++i) *lanes[i] = now[i];
}
template <typename Operation>
float WarpButterfly(const char* operation, float value) {
  WarpCompute<float, ComputeButterfly<Operation>>(operation, &value);
  return value;
}

struct MatrixLoad {
  uint32_t* registers;
  const uint8_t* row;
  bool transposed;
};
inline void ComputeMatrixLoad(MatrixLoad* const* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) std::memcpy(m[row], lanes[8 * matrix + row]->row, 16);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const bool transposed = lanes[lane]->transposed;
      const uint32_t low = transposed ? m[2 * t][g] : m[g][2 * t];
      const uint32_t high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
      lanes[lane]->registers[matrix] = high << 16 | low;
    }
  }
}
inline void LoadMatrix(const char* operation, uint32_t (&r)[4], const void* row, bool transposed) {
  CheckAccess(operation, row, 16, 16);
  MatrixLoad request = {r, static_cast<const uint8_t*>(row), transposed};
  WarpCompute<MatrixLoad, ComputeMatrixLoad>(operation, &request);
}

struct MatrixProduct {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// d[16][8] += a[16][16] b[16][8] in ascending k, each product and each sum rounded by itself.
template <typename Format>
void ComputeProduct(MatrixProduct* const* lanes) {
  constexpr int kDepth = 16;
  const auto element = [](uint32_t word, int i) {
    return Format::Decode(static_cast<uint16_t>(word >> (16 * i)));
  };
  float a[16][kDepth], b[kDepth][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const MatrixProduct& own = *lanes[lane];
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * t + i;
      a[g][k] = element(own.a[0], i);
      a[g + 8][k] = element(own.a[1], i);
      a[g][k + kDepth / 2] = element(own.a[2], i);
      a[g + 8][k + kDepth / 2] = element(own.a[3], i);
      b[k][g] = element(own.b[0], i);
      b[k + kDepth / 2][g] = element(own.b[1], i);
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

template <typename Format>
void Mma(const char* operation, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MatrixProduct request = {d, a, b};
  WarpCompute<MatrixProduct, ComputeProduct<Format>>(operation, &request);
}

}  // namespace pergola::emulator
