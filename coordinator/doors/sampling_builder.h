// From SamplingParameters to the Sampling of a plan: the model's defaults resolved, every field
// held to its limits, contradictions named. Pure.
#pragma once

#include <cstdint>

#include "coordinator/doors/call_status.h"
#include "model/text_parts.h"
#include "pergola/v1/generation.pb.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

struct SamplingLimits {
  uint64_t vocabulary_size = 0;
  uint64_t context_length = 0;
};

// How many sequences a request runs and how many of them it returns.
struct SequenceCount {
  uint32_t n = 1;
  uint32_t best_of = 1;  // at least n
};

// Hugging Face's meaning of defaults: temperature and the filters after it count only where the
// model says do_sample; sampling without a stated temperature is at 1. The result holds no minimum
// of new tokens and nothing suppressed: those follow from the stop conditions. With violations it
// is not to be used.
v1::Sampling ResolveSampling(const v1::SamplingParameters& asked, const GenerationDefaults& stated,
                             const SamplingLimits& limits, Violations* violations);

// n and best_of; 1 and 1 after a violation. Greedy sequences of one prompt are all equal, so more
// than one is a violation.
SequenceCount ResolveCount(const v1::SamplingParameters& asked, bool greedy,
                           Violations* violations);

}  // namespace pergola
