// The GPT-2 family (Radford et al., Language Models are Unsupervised Multitask Learners, 2019), and
// what GPTBigCode, its descendant, shares with it.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kGpt2Family;

// The names of weights: "transformer.h.0.ln_1.weight".
extern const HfNames kGptNames;

// Sizes, norms, learned positions, MLP and scale, all heads with their own KV. `default_activation`
// is the class's. Refuses by name and value what the decoder cannot execute.
absl::StatusOr<ModelSpec> GptSpecFromHf(const JsonObject& config,
                                        std::string_view default_activation);

}  // namespace pergola
