#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

namespace pergola {

Int8Steps StepsOfRow(const float* x, int64_t count) {
  float most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max(most, std::abs(x[k]));
  return StepsOf(most);
}

void QuantizeInt8(const float* x, int64_t count, const Int8Steps& steps, int8_t* q) {
  for (int64_t k = 0; k < count; ++k) q[k] = ToInt8(x[k], steps.inverse);
}

float Int8LimitOf(const float* x, int64_t count) {
  float parts[kInt8SumParts] = {};
  for (int64_t k = 0; k < count; ++k) {
    const float value = IsInt8Outlier(x[k], kInt8Outlier) ? 0.0F : x[k];
    parts[k % kInt8SumParts] += value * value;
  }
  float sum = 0;
  for (const float part : parts) sum += part;
  return Int8Limit(sum, count);
}

float QuantizeInt8Token(const float* x, int64_t count, float limit, int8_t* q) {
  float most = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (!IsInt8Outlier(x[k], limit)) most = std::max(most, std::abs(x[k]));
  }
  const Int8Steps steps = StepsOf(most);
  for (int64_t k = 0; k < count; ++k) {
    q[k] = IsInt8Outlier(x[k], limit) ? int8_t{0} : ToInt8(x[k], steps.inverse);
  }
  return steps.scale;
}

}  // namespace pergola
