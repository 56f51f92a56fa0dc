// The one comparator of the kernel tests. It can fail: a NaN never matches a number, an infinity
// matches only itself, and in CompareBits +0 and -0 differ.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace pergola {

inline bool WithinBound(float got, float want, double bound) {
  if (std::isnan(got) || std::isnan(want)) return std::isnan(got) && std::isnan(want);
  if (std::isinf(got) || std::isinf(want)) return got == want;
  // Written so that a NaN bound fails.
  return std::abs(static_cast<double>(got) - static_cast<double>(want)) <= bound;
}

// NaN equals NaN whatever its payload (targets differ in it); all else must agree in every bit.
inline bool SameBits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): the bits are what is compared.
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

inline testing::AssertionResult CompareWith(const std::vector<float>& got,
                                            const std::vector<float>& want,
                                            const std::function<double(size_t)>& bound) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << got.size() << " values instead of " << want.size();
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (!WithinBound(got[i], want[i], bound(i))) {
      return testing::AssertionFailure() << "value " << i << " is " << got[i] << " instead of "
                                         << want[i] << ", bound " << bound(i);
    }
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult CompareBits(const std::vector<float>& got,
                                            const std::vector<float>& want) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << got.size() << " values instead of " << want.size();
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (!SameBits(got[i], want[i])) {
      return testing::AssertionFailure()
             << "value " << i << " is " << got[i] << " instead of " << want[i] << " to the bit";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace pergola
