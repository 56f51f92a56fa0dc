// The sequences of one admitted request (n, best_of) as a call sees them: their mailboxes, which of
// them have ended, and what of them goes to the client. Not thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/doors/held_results.h"
#include "coordinator/doors/request_builder.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/mailbox.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

class RunningRequest {
 public:
  RunningRequest() = default;

  // Submits every sequence of `built` that is not finished already. `notify` runs on the engine
  // thread whenever there is something to take. An error is the refusal of the first sequence that
  // was refused; the others are then cancelled. What best_of holds back comes out of `budget`
  // (borrowed, as the engine).
  absl::Status Submit(Engine* engine, ResultBudget* budget, BuiltRequest built,
                      const std::function<void()>& notify);

  // Appends what gathered since the last call, at most one message per index; with best_of above n
  // nothing before all have ended. OK once all have ended by themselves, an error once one has
  // failed (what was reached before is in the messages) or best_of holds back too much.
  std::optional<absl::Status> Take(std::vector<v1::GenerateResponse>* messages);

  // Every sequence that has not ended ends with `status`. The messages and the end still come.
  void Cancel(const absl::Status& status) const;

  bool submitted() const { return !parts_.empty(); }

 private:
  struct Part {
    uint32_t index = 0;
    SequenceId id = 0;
    std::shared_ptr<Mailbox> mailbox;
    bool ended = false;
    std::string echo;            // text of the prompt that goes before the first text
    v1::GenerateResponse whole;  // best_of: all that came
    double logprob_sum = 0;      // best_of: of the new ids
  };

  void Translate(Part& part, Mailbox::Delivery delivery, v1::GenerateResponse* message);
  void Choose(std::vector<v1::GenerateResponse>* messages);

  Engine* engine_ = nullptr;
  RequestFacts facts_;
  std::vector<Part> parts_;
  HeldResults held_;  // best_of: what the parts hold
  bool info_sent_ = false;
  absl::Status failure_;
};

}  // namespace pergola
