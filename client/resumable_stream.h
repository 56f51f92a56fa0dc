// One Generate call that survives the loss of the connection: it remembers what arrived, redials
// and resumes, so that its messages add up to one undisturbed stream.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "grpcpp/channel.h"
#include "grpcpp/support/status.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {

// What a stream has given so far, and the request that continues it. Pure.
class StreamProgress {
 public:
  explicit StreamProgress(v1::GenerateRequest request);

  void Take(const v1::GenerateResponse& message);
  bool started() const { return info_.has_value(); }
  bool finished() const { return finished_; }
  int received() const { return received_.ids_size(); }
  // The original request, made resumable, until the first message came; then one that resumes.
  v1::GenerateRequest NextRequest() const;

 private:
  v1::GenerateRequest request_;
  std::optional<v1::StreamInfo> info_;
  v1::TokenIds received_;
  uint64_t text_bytes_ = 0;
  bool finished_ = false;
};

struct ResumeOptions {
  // How long one interruption may last, from its first error to the next token.
  std::chrono::milliseconds resume_timeout{120000};
  std::chrono::milliseconds first_delay{100};
  std::chrono::milliseconds longest_delay{5000};
  // How long the very first connection may take.
  std::chrono::milliseconds connect_timeout{5000};
  std::function<void(const v1::GenerateResponse&)> on_message;
  // An interruption, in words, just before it is waited out.
  std::function<void(const grpc::Status&)> on_interruption;
};

// Blocks until the stream has ended. OK only after a message with `finish`. UNAVAILABLE is waited
// out within the bounds once the stream has begun; before that, only if the server gave RetryInfo
// or the connection broke.
grpc::Status RunResumableStream(const std::shared_ptr<grpc::Channel>& channel,
                                const v1::GenerateRequest& request, const ResumeOptions& options);

}  // namespace pergola
