#include "client/bench/requests.h"

#include <algorithm>
#include <cmath>

#include "client/bench/random.h"

namespace pergola {
namespace {

// The median of a log-normal with this mean is mean * exp(-deviation^2 / 2).
double LogNormal(BenchRandom& random, double mean, double deviation) {
  return mean * std::exp(deviation * random.Normal() - deviation * deviation / 2);
}

uint32_t Clip(double length, uint32_t longest) {
  return static_cast<uint32_t>(std::clamp(std::round(length), 1.0, std::max(1.0, 1.0 * longest)));
}

}  // namespace

RequestLengths ShareGptLengths(uint64_t seed, uint64_t number, uint32_t context_length) {
  BenchRandom random(seed, RandomPurpose::kLengths, number);
  const double prompt = LogNormal(random, 161.31, 1.2);
  const double output = LogNormal(random, 337.99, 1.0);
  RequestLengths lengths;
  lengths.prompt_tokens = Clip(prompt, context_length / 2);
  const uint32_t left = context_length - std::min(context_length, lengths.prompt_tokens);
  lengths.output_tokens = Clip(output, left);
  return lengths;
}

RequestLengths LengthsOf(const RequestShape& shape, uint64_t number) {
  if (shape.sharegpt) return ShareGptLengths(shape.seed, number, shape.context_length);
  return {shape.prompt_tokens, shape.output_tokens};
}

void FillMixedSampling(const RequestShape& shape, uint64_t number,
                       v1::SamplingParameters* sampling) {
  sampling->Clear();
  BenchRandom random(shape.seed, RandomPurpose::kSampling, number);
  const uint64_t kind = random.Next() % 6;
  if (kind == 0) {
    sampling->set_temperature(0);
    return;
  }
  sampling->set_seed(random.Next());
  sampling->set_temperature(static_cast<float>(random.Between(0.3, 1.2)));
  if (kind == 2) sampling->set_top_k(std::min(shape.vocabulary, 50U));
  if (kind == 3) sampling->set_top_p(0.9F);
  if (kind == 4) sampling->set_repetition_penalty(1.2F);
  if (kind == 5) {
    sampling->set_presence_penalty(0.5F);
    sampling->set_frequency_penalty(0.5F);
  }
}

void FillRequest(const RequestShape& shape, uint64_t number, v1::GenerateRequest* request) {
  const RequestLengths lengths = LengthsOf(shape, number);
  auto* ids = request->mutable_tokens()->mutable_ids();
  ids->Resize(static_cast<int>(lengths.prompt_tokens), 0);
  BenchRandom random(shape.seed, RandomPurpose::kPrompt, number);
  for (int32_t& id : *ids) id = static_cast<int32_t>(random.Next() % shape.vocabulary);
  request->mutable_stop()->set_max_new_tokens(lengths.output_tokens);
  request->mutable_stop()->set_ignore_eos(true);
  if (shape.mix) {
    FillMixedSampling(shape, number, request->mutable_sampling());
  } else {
    request->mutable_sampling()->set_temperature(0);
  }
}

}  // namespace pergola
