// One sequence as a door hands it to the engine: validated, tokenised, defaults resolved. What a
// request is refused for, it was refused for before this exists (DESIGN I5).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/mailbox.h"
#include "coordinator/engine/text_stream.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

using SequenceId = uint64_t;

inline constexpr int32_t kMinPriority = -100;
inline constexpr int32_t kMaxPriority = 100;

struct Sequence;

// Ties the sequences of one request together (n, best_of), so that one of them computes the prompt
// and the others start from its blocks. A door makes one and gives it to every sequence of the
// request; nobody but the engine thread looks inside.
struct ForkGroup {
  Sequence* leader = nullptr;  // who computes the prompt; null: the next that is looked at
};

struct SequenceRequest {
  std::string request_id;
  std::vector<int32_t> prompt_ids;    // at least one
  std::vector<int32_t> received_ids;  // of a resume: generated before, not delivered again
  uint64_t received_text_bytes = 0;   // of a resume: bytes of text not delivered again
  std::string
      resume_numerics_id;  // of a resume: the numerics id of the broken stream; empty otherwise
  v1::Sampling sampling;
  uint64_t seed = 0;
  uint32_t index = 0;           // within the request
  uint32_t max_new_tokens = 1;  // received ones included; 0: score the prompt
  // New tokens without which it surely does not end, received ones included: a deadline that the
  // group's measured pace cannot meet with so many is refused. 1 is always right.
  uint32_t least_new_tokens = 1;
  std::vector<int32_t> eos_ids;  // empty with ignore_eos
  std::vector<int32_t> stop_ids;
  std::unique_ptr<TextStream> text;  // fresh; the engine pushes received ids through it first
  TimeUs deadline = kNever;
  // Set: log-probabilities of prompt ids 1, 2, ... and of so many of the most probable ids there.
  std::optional<uint32_t> prompt_logprobs;
  int32_t priority = 0;  // kMinPriority to kMaxPriority; compared within a tenant only
  std::string tenant;    // whom its tokens are charged to, and who may share its prefixes
  // Second owners: the other sequences of the request. Null: it has none.
  std::shared_ptr<ForkGroup> fork_group;
  // Second owner: the door's call, which may outlive the sequence and the other way round.
  std::shared_ptr<Mailbox> mailbox;
};

}  // namespace pergola
