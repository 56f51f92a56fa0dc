#include "client/resumable_stream.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "base/status.h"
#include "client/error_text.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

// Makes a call one that can be cancelled, for as long as it lives.
class Watched {
 public:
  Watched(StreamCanceller* canceller, grpc::ClientContext* call) : canceller_(canceller) {
    if (canceller_ != nullptr) canceller_->Watch(call);
  }
  ~Watched() {
    if (canceller_ != nullptr) canceller_->Watch(nullptr);
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  StreamCanceller* const canceller_;
};

std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> Begin(v1::Generation::Stub& stub,
                                                                grpc::ClientContext* context,
                                                                const StreamProgress& progress,
                                                                const ResumeOptions& options) {
  // What has begun continues from its ids: it needs no template any more.
  if (options.conversation == nullptr || progress.started()) {
    return stub.Generate(context, progress.NextRequest());
  }
  v1::ChatRequest chat = *options.conversation;
  *chat.mutable_generate() = progress.NextRequest();
  return stub.Chat(context, chat);
}

// One connection's worth of the stream.
grpc::Status ReadOnce(v1::Generation::Stub& stub, StreamProgress& progress,
                      const ResumeOptions& options) {
  grpc::ClientContext context;
  if (!options.tenant.empty()) context.AddMetadata(kTenantKey, options.tenant);
  const Watched watched(options.canceller, &context);
  const auto reader = Begin(stub, &context, progress, options);
  v1::GenerateResponse message;
  absl::Status taken;
  while (taken.ok() && reader->Read(&message)) {
    taken = progress.Take(message);
    if (taken.ok() && options.on_message) options.on_message(message);
  }
  if (!taken.ok()) context.TryCancel();
  grpc::Status status = reader->Finish();
  if (!taken.ok()) {
    return grpc::Status(grpc::StatusCode::INTERNAL, std::string(taken.message()));
  }
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

void StreamCanceller::Cancel() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  if (call_ != nullptr) call_->TryCancel();
  changed_.NotifyAll();
}

bool StreamCanceller::cancelled() {
  MutexLock lock(mutex_);
  return cancelled_;
}

bool StreamCanceller::Sleep(std::chrono::milliseconds time) {
  const Clock::time_point end = Clock::now() + time;
  MutexLock lock(mutex_);
  while (!cancelled_ && Clock::now() < end) changed_.WaitUntil(mutex_, end);
  return !cancelled_;
}

void StreamCanceller::Watch(grpc::ClientContext* call) {
  MutexLock lock(mutex_);
  call_ = call;
  if (cancelled_ && call_ != nullptr) call_->TryCancel();
}

StreamProgress::StreamProgress(v1::GenerateRequest request) : request_(std::move(request)) {
  const v1::SamplingParameters& sampling = request_.sampling();
  const uint32_t sequences = sampling.has_n() ? sampling.n() : 1;
  // Beyond the limit the server refuses; what it cannot send needs no place.
  parts_.resize(std::clamp(sequences, 1U, kMaxSequences));
  request_.set_resumable(!sampling.has_best_of() || sampling.best_of() <= sequences);
}

absl::Status StreamProgress::Take(const v1::GenerateResponse& message) {
  if (message.index() >= parts_.size()) {
    return absl::InternalError(absl::StrCat("the server sent index ", message.index(),
                                            ", but the request's sequences are 0 to ",
                                            parts_.size() - 1));
  }
  if (message.has_info() && !info_.has_value()) info_ = message.info();
  Part& part = parts_[message.index()];
  part.ids.mutable_ids()->MergeFrom(message.ids());
  part.text_bytes += message.text().size();
  part.finished = part.finished || message.has_finish();
  received_ += static_cast<uint64_t>(message.ids_size());
  prompt_logprobs_ += static_cast<uint64_t>(message.prompt_logprobs_size());
  return absl::OkStatus();
}

bool StreamProgress::finished() const {
  return std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.finished; });
}

std::string StreamProgress::WhyNotResumable() const {
  if (!info_.has_value()) return "";
  if (!request_.resumable()) return "a request with best_of above n cannot be resumed";
  if (!request_.has_prompt_logprobs()) return "";
  // A resumed stream has none of them (generation.proto), so all must have come.
  const bool scored = prompt_logprobs_ + 1 >= info_->prompt_token_count();
  const bool only_scoring =
      request_.stop().has_max_new_tokens() && request_.stop().max_new_tokens() == 0;
  if (scored && !only_scoring) return "";
  return "a stream that broke within the prompt's log-probabilities cannot be resumed";
}

v1::GenerateRequest StreamProgress::NextRequest() const {
  v1::GenerateRequest next = request_;
  if (!info_.has_value()) return next;
  next.clear_prompt();
  next.clear_prompt_logprobs();
  v1::Resume* resume = next.mutable_resume();
  *resume->mutable_prompt() = info_->prompt();
  resume->set_seed(info_->seed());
  resume->set_numerics_id(info_->numerics_id());
  *resume->mutable_received() = parts_[0].ids;
  resume->set_text_bytes(parts_[0].text_bytes);
  resume->set_finished(parts_[0].finished);
  for (size_t i = 1; i < parts_.size(); ++i) {
    v1::Received* other = resume->add_others();
    *other->mutable_ids() = parts_[i].ids;
    other->set_text_bytes(parts_[i].text_bytes);
    other->set_finished(parts_[i].finished);
  }
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
    const uint64_t received_before = progress.received();
    grpc::Status status = ReadOnce(*stub, progress, options);
    // The last message may have come although the status behind it was lost.
    if (status.ok() || progress.finished()) return grpc::Status::OK;
    if (options.canceller != nullptr && options.canceller->cancelled()) {
      return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
    }
    if (!WorthAnotherTry(status, progress)) return status;
    const std::string why_not = progress.WhyNotResumable();
    if (!why_not.empty()) {
      return grpc::Status(status.error_code(), status.error_message() + "; " + why_not,
                          status.error_details());
    }
    const Clock::time_point now = Clock::now();
    // Only a new token ends an interruption, so a server that dies on each attempt cannot keep us
    // forever.
    if (progress.received() > received_before || !interrupted.has_value()) {
      interrupted = now;
      delay = options.first_delay;
      if (options.on_interruption) options.on_interruption(status);
    }
    if (now + delay - *interrupted > options.resume_timeout) return status;
    if (options.canceller == nullptr) {
      std::this_thread::sleep_for(delay);
    } else if (!options.canceller->Sleep(delay)) {
      return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
    }
    delay = std::min(2 * delay, options.longest_delay);
  }
}

}  // namespace pergola
