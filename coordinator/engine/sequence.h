// One accepted sequence and its three counters (DESIGN I2). The engine core owns it; a group's
// scheduler moves the counters and the place in the group while the sequence is in a slot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/engine/measurements.h"
#include "coordinator/engine/prefix_index.h"
#include "coordinator/engine/request.h"
#include "coordinator/engine/time.h"

namespace pergola {

class Scheduler;
struct Tenant;

struct Sequence {
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  SequenceId id = 0;  // ascending by arrival
  SequenceRequest request;

  // Prompt, received and sampled ids in order; survives preemption and the loss of a group.
  // request.prompt_ids was moved here.
  std::vector<int32_t> known;
  uint32_t prompt_count = 0;  // how many of `known` are the prompt
  uint32_t max_known = 0;     // prompt_count + max_new_tokens: never planned beyond
  uint32_t computed = 0;      // positions whose plan was answered
  uint32_t planned = 0;       // positions whose plan was sent
  uint32_t pending = 0;       // tokens that unanswered plans will sample
  uint32_t scored = 0;        // prompt ids whose log-probabilities have come

  // The place in a group; kNoSlot while waiting.
  uint32_t slot = kNoSlot;
  Scheduler* scheduler = nullptr;  // borrowed: whose slot it is; null while waiting
  uint64_t run = 0;                // tells this stay in a slot from all others of the group
  bool started = false;            // a plan with its SlotStart was made
  std::vector<uint32_t> blocks;
  uint32_t blocks_sent = 0;  // how many of `blocks` the workers' table holds
  uint64_t last_plan = 0;    // the plan that last samples for it
  uint32_t last_entry = 0;   // and the entry there
  uint64_t newest_plan = 0;  // that has an entry of it
  uint64_t prompt_plan = 0;  // the plan that completes the prompt; 0 if it stood in blocks already
  uint32_t published = 0;    // how many of `blocks` were offered to the prefix index
  // Of the full blocks of `known`, as far as they were needed, for blocks of `key_tokens`
  // positions.
  std::vector<PrefixKey> keys;
  uint32_t key_tokens = 0;
  bool running() const { return slot != kNoSlot; }
  // Log-probabilities of prompt ids are still missing.
  bool scores() const { return request.prompt_logprobs && scored + 1 < prompt_count; }

  // Its place among others. Lower is served first, see kAgingUsPerPoint.
  int64_t rank = 0;
  Tenant* tenant = nullptr;  // borrowed from the waiting queue; null: of no account
  // The reader's part: while its mailbox is full it is in no plan; a stalled one makes room for
  // others.
  bool paused = false;
  bool stalled = false;
  TimeUs paused_since = kNever;

  // The core's part: what a stream was told, and its history of losses.
  TimeUs submitted = 0;
  TimeUs first_planned = kNever;
  TimeUs first_token = kNever;
  TokenGaps gaps;
  bool info_sent = false;
  uint64_t text_skip = 0;      // bytes of text that a resume already has
  std::string resumed_text;    // of received ids, not sent before: goes out with the info
  int32_t max_id = 0;          // largest of the ids it came with
  std::string numerics_id;     // where it ran last, or what the resume names
  TimeUs home_since = kNever;  // since when it waits for that numerics id
  bool continued = false;      // a replay or resume: the next placement says how exact
  v1::Continuity continuity = v1::CONTINUITY_UNSPECIFIED;  // to be told with the next token
  uint32_t losses = 0;  // dying steps it was in without gaining a token since
  bool suspect = false;
  SequenceId queue_order = 0;  // its own id; of a suspect the first id after it became one
};

}  // namespace pergola
