#include "kernels/cpu/cpu_features.h"

#include "kernels/cpu/targets.h"

#include "hwy/targets.h"

namespace pergola {

bool CpuHasAvx2() {
#if HWY_TARGETS & HWY_AVX2
  return (hwy::SupportedTargets() & HWY_AVX2) != 0;
#else
  return false;
#endif
}

bool CpuHasAvx512() {
#if HWY_TARGETS & HWY_AVX3
  return (hwy::SupportedTargets() & HWY_AVX3) != 0;
#else
  return false;
#endif
}

bool CpuHasAvx512Vnni() {
#if HWY_TARGETS & HWY_AVX3
  return CpuHasAvx512() && __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

}  // namespace pergola
