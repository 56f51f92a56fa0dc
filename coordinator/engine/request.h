// One sequence as a door hands it to the engine: validated, tokenised, defaults resolved. What a
// request is refused for, it was refused for before this exists (DESIGN I5).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine/mailbox.h"
#include "coordinator/engine/text_stream.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

using SequenceId = uint64_t;

struct SequenceRequest {
  std::string request_id;
  std::vector<int32_t> prompt_ids;    // at least one
  std::vector<int32_t> received_ids;  // of a resume: generated before, not delivered again
  uint64_t received_text_bytes = 0;   // of a resume: bytes of text not delivered again
  std::string
      resume_numerics_id;  // of a resume: the numerics id of the broken stream; empty otherwise
  v1::Sampling sampling;
  uint64_t seed = 0;
  uint32_t index = 0;            // within the request
  uint32_t max_new_tokens = 1;   // received ones included
  std::vector<int32_t> eos_ids;  // empty with ignore_eos
  std::vector<int32_t> stop_ids;
  std::unique_ptr<TextStream> text;  // fresh; the engine pushes received ids through it first
  TimeUs deadline = kNever;
  // Second owner: the door's call, which may outlive the sequence and the other way round.
  std::shared_ptr<Mailbox> mailbox;
};

}  // namespace pergola
