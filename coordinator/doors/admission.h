// The one path by which any door's generate request reaches the engine: parse, build, submit. Runs
// on the text pool.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/doors/delivery_thread.h"
#include "coordinator/doors/held_results.h"
#include "coordinator/doors/request_builder.h"
#include "coordinator/doors/running_request.h"
#include "coordinator/doors/work_pool.h"
#include "coordinator/engine/engine.h"
#include "google/rpc/status.pb.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

// What every door call needs; all borrowed, all outlive the calls.
struct DoorContext {
  ServedModel served;
  Engine* engine = nullptr;
  WorkPool* text_pool = nullptr;          // parsing, tokenising, building
  DeliveryThread* delivery = nullptr;     // from mailboxes to writes
  std::atomic<int64_t>* calls = nullptr;  // calls that generate, in progress
  int64_t max_calls = 0;
  ResultBudget* results = nullptr;          // held back by best_of and GenerateBatch
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
google::rpc::Status TextPoolFull(const DoorContext& context);

// What a call says beside its message.
struct CallFacts {
  TimeUs deadline = kNever;
  std::string tenant;  // metadata key kTenantKey; empty: the tenant of all who name none
};

// Parses a serialised GenerateRequest and submits its sequences. OK: each gets exactly one end.
// Else: why not.
google::rpc::Status Admit(const DoorContext& context, std::string_view bytes,
                          const std::string& field_prefix, const CallFacts& call,
                          const std::function<void()>& notify, RunningRequest* running);

// The same for a serialised ChatRequest, whose messages are rendered first.
google::rpc::Status AdmitChat(const DoorContext& context, std::string_view bytes,
                              const CallFacts& call, const std::function<void()>& notify,
                              RunningRequest* running);

}  // namespace pergola
