// Which Highway targets the CPU sources are compiled for, and how one is chosen by CpuTarget.
// Included before hwy/foreach_target.h. Choosing by argument instead of HWY_DYNAMIC_DISPATCH keeps
// the choice per stream, so that one test process runs every target; Highway's own table is global.
#pragma once

// AVX2 and AVX-512 carry every x86 worth a server; the baseline of the compiler is the portable
// path.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

#include "hwy/detect_targets.h"
#include "kernels/cpu_stream.h"

#if HWY_TARGETS & HWY_AVX2
#define PERGOLA_AVX2(FUNCTION) N_AVX2::FUNCTION
#else
#define PERGOLA_AVX2(FUNCTION) HWY_STATIC_DISPATCH(FUNCTION)
#endif
#if HWY_TARGETS & HWY_AVX3
#define PERGOLA_AVX512(FUNCTION) N_AVX3::FUNCTION
#else
#define PERGOLA_AVX512(FUNCTION) HWY_STATIC_DISPATCH(FUNCTION)
#endif

// A pointer to FUNCTION as compiled for `target`; kReference has no SIMD version and is dealt with
// by the caller.
#define PERGOLA_CHOOSE(target, FUNCTION)                                 \
  ((target) == ::pergola::CpuTarget::kAvx512 ? &PERGOLA_AVX512(FUNCTION) \
   : (target) == ::pergola::CpuTarget::kAvx2 ? &PERGOLA_AVX2(FUNCTION)   \
                                             : &HWY_STATIC_DISPATCH(FUNCTION))
