#include "worker/weights/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/fp8.h"
#include "kernels/int8.h"

namespace pergola {
namespace {

constexpr int64_t kGroup = 32;
constexpr int kMostSteps = 15;
constexpr uint16_t kF16Infinity = 0x7C00;

Range GroupsOf(Range cut) {
  return {cut.begin / kGroup, (cut.end + kGroup - 1) / kGroup};
}

// Steps of a group: x is scale * q + minimum, q in 0..15. Of q4_0 the minimum is -8 scale.
struct Steps {
  float scale = 0;
  float minimum = 0;
};

float ThroughF16(float value) {
  return F16ToF32(F32ToF16(value));
}

// As the file will hold them. The scale of q4_0 may be negative.
Steps Stored(Steps steps, bool has_minimum) {
  steps.scale = ThroughF16(steps.scale);
  steps.minimum = has_minimum ? ThroughF16(steps.minimum) : -8 * steps.scale;
  return steps;
}

// The nearest q of every value, and the squared error.
double Nearest(const float* x, int64_t count, const Steps& steps, int* q) {
  const float inverse = steps.scale == 0 ? 0 : 1 / steps.scale;
  double error = 0;
  for (int64_t i = 0; i < count; ++i) {
    // Clamped first: the place of a value far outside is no int.
    const float place = std::clamp((x[i] - steps.minimum) * inverse, 0.0F, 15.0F);
    const float up = place + 0.5F;
    q[i] = static_cast<int>(up);
    const float off = x[i] - (steps.scale * static_cast<float>(q[i]) + steps.minimum);
    error += static_cast<double>(off) * off;
  }
  return error;
}

// The scale and minimum of least squared error for given q.
Steps Fitted(const float* x, int64_t count, const int* q, bool has_minimum) {
  double sum_q = 0, sum_qq = 0, sum_x = 0, sum_xq = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double place = has_minimum ? q[i] : q[i] - 8;
    sum_q += place;
    sum_qq += place * place;
    sum_x += x[i];
    sum_xq += x[i] * place;
  }
  if (!has_minimum) {
    const auto scale = static_cast<float>(sum_qq > 0 ? sum_xq / sum_qq : 0);
    return {scale, -8 * scale};
  }
  const auto n = static_cast<double>(count);
  const double spread = n * sum_qq - sum_q * sum_q;
  if (spread <= 0) return {0, static_cast<float>(sum_x / n)};
  const double scale = (n * sum_xq - sum_q * sum_x) / spread;
  return {static_cast<float>(scale), static_cast<float>((sum_x - scale * sum_q) / n)};
}

// Where a search begins: the whole range in 15 steps, or a part of it, in which case what lies
// outside is clamped.
Steps Begin(float low, float high, float share, bool has_minimum) {
  if (has_minimum) {
    const float middle = (low + high) / 2;
    const float half = (high - low) / 2 * share;
    return {2 * half / kMostSteps, middle - half};
  }
  // The largest value by size takes the -8, which the other end does not have.
  const float peak = -low > high ? low : high;
  const float scale = peak * share / -8;
  return {scale, -8 * scale};
}

// The shares of the range that are tried.
constexpr float kShares[] = {1.0F, 0.94F, 0.88F, 0.82F};

}  // namespace

bool QuantizeGroup(const float* x, int64_t count, DType to, uint8_t* block) {
  PERGOLA_CHECK((to == DType::kQ4_0 || to == DType::kQ4_1) && count >= 1 && count <= kGroup);
  const bool has_minimum = to == DType::kQ4_1;
  const auto [low, high] = std::minmax_element(x, x + count);
  Steps best = Stored(Begin(*low, *high, 1, has_minimum), has_minimum);
  int best_q[kGroup] = {}, q[kGroup] = {};
  double best_error = Nearest(x, count, best, best_q);
  const auto consider = [&](Steps steps) {
    steps = Stored(steps, has_minimum);
    const double error = Nearest(x, count, steps, q);
    if (!(error < best_error)) return;
    best = steps;
    best_error = error;
    std::copy_n(q, count, best_q);
  };
  for (const float share : kShares) {
    Steps steps = Begin(*low, *high, share, has_minimum);
    Nearest(x, count, steps, q);
    consider(Fitted(x, count, q, has_minimum));
  }
  const uint16_t scale = F32ToF16(best.scale);
  const uint16_t minimum = F32ToF16(best.minimum);
  if ((scale & kF16Infinity) == kF16Infinity) return false;
  if (has_minimum && (minimum & kF16Infinity) == kF16Infinity) return false;
  std::memcpy(block, &scale, 2);
  if (has_minimum) std::memcpy(block + 2, &minimum, 2);
  uint8_t* nibbles = block + (has_minimum ? 4 : 2);
  for (int64_t i = 0; i < kGroup / 2; ++i) {
    nibbles[i] = static_cast<uint8_t>(best_q[i] | best_q[i + kGroup / 2] << 4);
  }
  return true;
}

int64_t ConvertedRowBytes(DType to, Range cut) {
  if (HasRowScale(to)) return static_cast<int64_t>(sizeof(float)) + cut.size();
  if (BlockValues(to) == kGroup) return GroupsOf(cut).size() * BlockBytes(to);
  return DTypeBytes(to, cut.size());
}

namespace {

int64_t ConvertHalves(const float* row, Range cut, DType to, uint8_t* out) {
  const bool bf16 = to == DType::kBF16;
  const uint16_t infinity = bf16 ? 0x7F80 : kF16Infinity;
  for (int64_t k = cut.begin; k < cut.end; ++k) {
    const uint16_t bits = bf16 ? F32ToBF16(row[k]) : F32ToF16(row[k]);
    if ((bits & infinity) == infinity) return k;
    std::memcpy(out + 2 * (k - cut.begin), &bits, 2);
  }
  return -1;
}

}  // namespace

int64_t ConvertRow(const float* row, int64_t columns, Range cut, DType to, uint8_t* out) {
  switch (to) {
    case DType::kF32:
      std::memcpy(out, row + cut.begin, static_cast<size_t>(cut.size()) * sizeof(float));
      return -1;
    case DType::kBF16:
    case DType::kF16:
      return ConvertHalves(row, cut, to, out);
    case DType::kInt8: {
      auto* q = reinterpret_cast<int8_t*>(out + sizeof(float));
      const Int8Steps steps = StepsOfRow(row, columns);
      QuantizeInt8(row + cut.begin, cut.size(), steps, q);
      std::memcpy(out, &steps.scale, sizeof(float));
      return -1;
    }
    case DType::kFp8: {
      const Fp8Steps steps = Fp8StepsOfRow(row, columns);
      QuantizeFp8(row + cut.begin, cut.size(), steps, out + sizeof(float));
      std::memcpy(out, &steps.scale, sizeof(float));
      return -1;
    }
    case DType::kQ4_0:
    case DType::kQ4_1:
      for (int64_t g = GroupsOf(cut).begin; g < GroupsOf(cut).end; ++g) {
        const int64_t count = std::min(kGroup, columns - g * kGroup);
        if (!QuantizeGroup(row + g * kGroup, count, to, out)) return g * kGroup;
        out += BlockBytes(to);
      }
      return -1;
    default:
      PERGOLA_CHECK(false);
  }
}

}  // namespace pergola
