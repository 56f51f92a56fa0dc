#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

namespace pergola {
namespace {

template <bool kOutliers>
float Quantize(const float* x, int64_t count, int8_t* q) {
  const auto stays = [](float value) { return !kOutliers || !IsInt8Outlier(value); };
  float most = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (stays(x[k])) most = std::max(most, std::abs(x[k]));
  }
  const Int8Steps steps = StepsOf(most);
  for (int64_t k = 0; k < count; ++k) {
    q[k] = stays(x[k]) ? ToInt8(x[k], steps.inverse) : int8_t{0};
  }
  return steps.scale;
}

}  // namespace

float QuantizeInt8(const float* x, int64_t count, int8_t* q) {
  return Quantize<false>(x, count, q);
}

float QuantizeInt8Token(const float* x, int64_t count, int8_t* q) {
  return Quantize<true>(x, count, q);
}

}  // namespace pergola
