// What the requests of a benchmark ask: lengths, prompts and sampling parameters, each a pure
// function of the seed and the request's number.
#pragma once

#include <cstdint>

#include "pergola/v1/generation.pb.h"

namespace pergola {

struct RequestShape {
  uint64_t seed = 1;
  bool sharegpt = false;  // lengths as in ShareGptLengths, in place of the two below
  uint32_t prompt_tokens = 1;
  uint32_t output_tokens = 1;
  bool mix = false;  // sampling as in FillMixedSampling, in place of greedy
  // What the server says of its model.
  uint32_t vocabulary = 1;
  uint32_t context_length = 2;
};

struct RequestLengths {
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
};

// Log-normal lengths with the means that Kwon et al., "Efficient memory management for large
// language model serving with PagedAttention", SOSP 2023, print in figure 11 for ShareGPT: 161.31
// prompt and 337.99 output tokens. The figure gives no spread in numbers; the standard deviation of
// the logarithms, 1.2 and 1.0, is our choice. A prompt is cut to half the context length, the
// output to what is left, so the means shrink where a context is short.
RequestLengths ShareGptLengths(uint64_t seed, uint64_t number, uint32_t context_length);

RequestLengths LengthsOf(const RequestShape& shape, uint64_t number);

// One of six kinds, each as likely: greedy; temperature; temperature with top_k; with top_p; with a
// repetition penalty; with presence and frequency penalties. Every one but greedy has its own seed.
void FillMixedSampling(const RequestShape& shape, uint64_t number,
                       v1::SamplingParameters* sampling);

// Random prompt ids; as many new tokens as the lengths say, whatever the model says is the end.
// Overwrites `request`, reusing its memory.
void FillRequest(const RequestShape& shape, uint64_t number, v1::GenerateRequest* request);

}  // namespace pergola
