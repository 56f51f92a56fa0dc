// The flags of `pergola generate` and `pergola chat` that say what is asked, and the request they
// make.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

// What is unset was not given and stays unset in the request.
struct GenerateFlags {
  std::string model;
  std::string request_id;
  std::optional<uint32_t> max_new_tokens;
  std::optional<uint32_t> min_new_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false;
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> typical_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint32_t> no_repeat_ngram_size;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::optional<uint64_t> seed;
  std::optional<uint32_t> n;
  std::optional<uint32_t> best_of;
  std::optional<uint32_t> logprobs;
  std::optional<uint32_t> prompt_logprobs;
  bool echo = false;
  std::optional<int32_t> priority;
  std::string tenant;
  bool json = false;

  uint32_t sequences() const { return n.value_or(1); }
};

// Declares them below `command`; `flags` must outlive the parsing.
void AddGenerateFlags(CLI::App& command, GenerateFlags* flags);
// Only those that `pergola chat` has too: how a token is chosen, when an answer ends, and who asks.
void AddSharedFlags(CLI::App& command, GenerateFlags* flags);

// The request for `prompt`, with nothing set that was not given. INVALID_ARGUMENT in one line for
// flags that contradict each other and for texts that are not what they must be.
absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateFlags& flags,
                                                        const std::string& prompt);

}  // namespace pergola
