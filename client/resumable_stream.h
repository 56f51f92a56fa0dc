// One Generate or Chat call that survives the loss of the connection: it remembers what arrived,
// redials and resumes, so that its messages add up to one undisturbed stream.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {

// What the sequences of a stream have given so far, and the request that continues it. Pure.
class StreamProgress {
 public:
  explicit StreamProgress(v1::GenerateRequest request);

  // INTERNAL, and nothing is taken, if the message is of a sequence that the request did not ask
  // for.
  absl::Status Take(const v1::GenerateResponse& message);
  bool started() const { return info_.has_value(); }
  bool finished() const;                           // every sequence has
  uint64_t received() const { return received_; }  // new ids of all sequences
  // Why what has arrived cannot be continued, in words; empty if it can be, or if nothing has
  // arrived, so that the request may be sent again as it was.
  std::string WhyNotResumable() const;
  // The original request, made resumable, until the first message came; then one that resumes.
  v1::GenerateRequest NextRequest() const;

 private:
  struct Part {
    v1::TokenIds ids;
    uint64_t text_bytes = 0;
    bool finished = false;
  };

  v1::GenerateRequest request_;
  std::optional<v1::StreamInfo> info_;
  std::vector<Part> parts_;  // by index
  uint64_t received_ = 0;
  uint64_t prompt_logprobs_ = 0;
};

// Ends a stream from another thread; usable once. Outlives the stream.
class StreamCanceller {
 public:
  void Cancel();
  bool cancelled();
  // False at once when cancelled, true when the time is over.
  bool Sleep(std::chrono::milliseconds time);
  // The call to be cancelled; nullptr: none is in progress.
  void Watch(grpc::ClientContext* call);

 private:
  Mutex mutex_;
  CondVar changed_;
  bool cancelled_ GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ GUARDED_BY(mutex_) = nullptr;
};

struct ResumeOptions {
  // How long one interruption may last, from its first error to the next token.
  std::chrono::milliseconds resume_timeout{120000};
  std::chrono::milliseconds first_delay{100};
  std::chrono::milliseconds longest_delay{5000};
  // How long the very first connection may take.
  std::chrono::milliseconds connect_timeout{5000};
  // Not null: what Chat begins with, in place of the request's prompt. Borrowed.
  const v1::ChatRequest* conversation = nullptr;
  StreamCanceller* canceller = nullptr;  // borrowed; null: nobody cancels
  std::string tenant;                    // printable ASCII; empty: none is named
  std::function<void(const v1::GenerateResponse&)> on_message;
  // An interruption, in words, just before it is waited out.
  std::function<void(const grpc::Status&)> on_interruption;
};

// Blocks until the stream has ended; CANCELLED if the canceller ended it. OK only after a message
// with `finish` of every sequence. UNAVAILABLE is waited out within the bounds once the stream has
// begun, if what has arrived can be continued; before that, only if the server gave RetryInfo or
// the connection broke.
grpc::Status RunResumableStream(const std::shared_ptr<grpc::Channel>& channel,
                                const v1::GenerateRequest& request, const ResumeOptions& options);

}  // namespace pergola
