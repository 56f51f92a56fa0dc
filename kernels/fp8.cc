#include "kernels/fp8.h"

#include <cmath>

namespace pergola {

Fp8Steps Fp8StepsOfRow(const float* x, int64_t count) {
  float most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::fmax(most, std::abs(x[k]));
  return Fp8StepsOf(most);
}

void QuantizeFp8(const float* x, int64_t count, const Fp8Steps& steps, uint8_t* q) {
  for (int64_t k = 0; k < count; ++k) q[k] = F32ToE4M3(x[k] * steps.inverse);
}

}  // namespace pergola
