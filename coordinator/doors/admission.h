// The one path by which any door's generate request reaches the engine: parse, build, submit. Runs
// on the text pool.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/doors/request_builder.h"
#include "coordinator/doors/work_pool.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/mailbox.h"
#include "google/rpc/status.pb.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

// What every door call needs; all borrowed, all outlive the calls.
struct DoorContext {
  ServedModel served;
  Engine* engine = nullptr;
  WorkPool* text_pool = nullptr;  // parsing, tokenising, building
  WorkPool* delivery_pool =
      nullptr;  // from mailboxes to writes; one thread, at most one job per call
  std::atomic<int64_t>* calls = nullptr;  // calls that generate, in progress
  int64_t max_calls = 0;
  int64_t slow_reader_timeout_ms = 30'000;  // a write the client does not take for so long ends
                                            // its call
};

// A place among max_calls for as long as it lives.
class CallPlace {
 public:
  explicit CallPlace(const DoorContext& context)
      : context_(context), taken_(context.calls->fetch_add(1) < context.max_calls) {}
  ~CallPlace() { context_.calls->fetch_sub(1); }
  CallPlace(const CallPlace&) = delete;
  CallPlace& operator=(const CallPlace&) = delete;
  bool taken() const { return taken_; }
  // RESOURCE_EXHAUSTED, naming the bound.
  google::rpc::Status Refusal() const;

 private:
  const DoorContext& context_;
  const bool taken_;
};

// RESOURCE_EXHAUSTED for a full text pool.
google::rpc::Status TextPoolFull();

// What the door itself adds to the first message of an admitted sequence.
class Admitted {
 public:
  SequenceId id = 0;

  // Completes the engine's StreamInfo.
  void Complete(v1::StreamInfo* info) const;

 private:
  friend google::rpc::Status Admit(const DoorContext&, std::string_view, const std::string&, TimeUs,
                                   std::shared_ptr<Mailbox>, Admitted*);
  std::string request_id_;
  std::string model_;
  uint32_t prompt_token_count_ = 0;
  v1::TokenIds prompt_;  // only if the request is resumable
};

// Parses a serialised GenerateRequest and submits it. OK: `mailbox` gets exactly one end. Else: why
// not.
google::rpc::Status Admit(const DoorContext& context, std::string_view bytes,
                          const std::string& field_prefix, TimeUs deadline,
                          std::shared_ptr<Mailbox> mailbox, Admitted* admitted);

}  // namespace pergola
