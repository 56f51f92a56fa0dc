// From a GenerateRequest to the SequenceRequests that the engine takes: every default resolved,
// every limit checked, all violations told at once. Pure: what is served, time and randomness come
// in. Not for single sampling parameters (sampling_builder.h) and not for admission (admission.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "coordinator/doors/call_status.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/request.h"
#include "coordinator/text/tokenizer.h"
#include "model/text_parts.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

class ChatTemplate;

// What is served. All is borrowed and must outlive every SequenceRequest built.
struct ServedModel {
  const TextParts* parts = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const absl::StatusOr<ChatTemplate>* chat = nullptr;  // an error: why the model cannot chat
};

// The limits that requests are held to: the attached group's, and before the first one attached
// those of the files.
struct RequestLimits {
  uint64_t context_length = 0;
  uint64_t vocabulary_size = 0;
  uint64_t kv_tokens = 0;  // 0: not known yet
};
RequestLimits LimitsFor(const TextParts& parts, const ServingLimits& serving);

struct BuildInputs {
  ServedModel served;
  RequestLimits limits;
  std::string field_prefix;  // of violations: "requests[3]."
  std::string prompt_path;   // of violations of the prompt; empty: the field that holds it
  std::string request_id;    // used if the client names none
  TimeUs deadline = kNever;
  std::string tenant;                   // whom the request is charged to
  std::function<uint64_t()> draw_seed;  // called if the request samples and states no seed
};

// What a call must know of a request beside its sequences.
struct RequestFacts {
  std::string request_id;
  std::string model;
  uint32_t prompt_token_count = 0;
  v1::TokenIds prompt;         // only if the request is resumable
  uint32_t n = 1;              // sequences to return
  uint32_t best_of = 1;        // sequences that run
  bool tell_logprobs = false;  // else they are computed, if at all, for the choice only
};

struct BuiltSequence {
  SequenceRequest request;
  std::string echo;  // text of the prompt that goes before its own
};

struct BuiltRequest {
  RequestFacts facts;
  std::vector<BuiltSequence> sequences;  // by index, without those a resume says have ended
};

// Fills all of `built` but the mailboxes and returns OK (code 0); or INVALID_ARGUMENT with every
// violation, or NOT_FOUND for another model's name.
google::rpc::Status BuildRequest(const v1::GenerateRequest& request, const BuildInputs& inputs,
                                 BuiltRequest* built);

// NOT_FOUND unless `name` is empty or the served model's; shared by all calls that name a model.
google::rpc::Status CheckModelName(const std::string& name, const TextParts& parts);

// Checks size and UTF-8 of a text to tokenize; false after adding a violation of `field`.
bool CheckText(const std::string& text, std::string_view field, Violations* violations);

// Adds a violation for the first id that is not 0 <= id < vocabulary_size.
bool CheckIds(absl::Span<const int32_t> ids, uint64_t vocabulary_size, std::string_view field,
              Violations* violations);

}  // namespace pergola
