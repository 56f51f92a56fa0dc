#include "client/resumable_stream.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "client/error_text.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

// One connection's worth of the stream.
grpc::Status ReadOnce(v1::Generation::Stub& stub, StreamProgress& progress,
                      const ResumeOptions& options) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, progress.NextRequest());
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    progress.Take(message);
    if (options.on_message) options.on_message(message);
  }
  grpc::Status status = reader->Finish();
  if (status.ok() && !progress.finished()) {
    status =
        grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream ended without its last message");
  }
  return status;
}

bool WorthAnotherTry(const grpc::Status& status, const StreamProgress& progress) {
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return false;
  // A broken connection carries no details; a refusal does.
  return progress.started() || status.error_details().empty() || HasRetryInfo(status);
}

}  // namespace

StreamProgress::StreamProgress(v1::GenerateRequest request) : request_(std::move(request)) {
  request_.set_resumable(true);
}

void StreamProgress::Take(const v1::GenerateResponse& message) {
  if (message.has_info() && !info_.has_value()) info_ = message.info();
  received_.mutable_ids()->MergeFrom(message.ids());
  text_bytes_ += message.text().size();
  finished_ = finished_ || message.has_finish();
}

v1::GenerateRequest StreamProgress::NextRequest() const {
  v1::GenerateRequest next = request_;
  if (!info_.has_value()) return next;
  next.clear_prompt();
  v1::Resume* resume = next.mutable_resume();
  *resume->mutable_prompt() = info_->prompt();
  *resume->mutable_received() = received_;
  resume->set_text_bytes(text_bytes_);
  resume->set_seed(info_->seed());
  resume->set_numerics_id(info_->numerics_id());
  return next;
}

grpc::Status RunResumableStream(const std::shared_ptr<grpc::Channel>& channel,
                                const v1::GenerateRequest& request, const ResumeOptions& options) {
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + options.connect_timeout)) {
    return grpc::Status(
        grpc::StatusCode::UNAVAILABLE,
        "nothing answers within " + std::to_string(options.connect_timeout.count()) + " ms");
  }
  const auto stub = v1::Generation::NewStub(channel);
  StreamProgress progress(request);
  std::optional<Clock::time_point> interrupted;
  std::chrono::milliseconds delay = options.first_delay;
  while (true) {
    const int received_before = progress.received();
    grpc::Status status = ReadOnce(*stub, progress, options);
    // The last message may have come although the status behind it was lost.
    if (status.ok() || progress.finished()) return grpc::Status::OK;
    if (!WorthAnotherTry(status, progress)) return status;
    const Clock::time_point now = Clock::now();
    // Only a new token ends an interruption, so a server that dies on each attempt cannot keep us
    // forever.
    if (progress.received() > received_before || !interrupted.has_value()) {
      interrupted = now;
      delay = options.first_delay;
      if (options.on_interruption) options.on_interruption(status);
    }
    if (now + delay - *interrupted > options.resume_timeout) return status;
    std::this_thread::sleep_for(delay);
    delay = std::min(2 * delay, options.longest_delay);
  }
}

}  // namespace pergola
