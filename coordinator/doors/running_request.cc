#include "coordinator/doors/running_request.h"

#include <algorithm>
#include <utility>

namespace pergola {

absl::Status RunningRequest::Submit(Engine* engine, ResultBudget* budget, BuiltRequest built,
                                    const std::function<void()>& notify) {
  engine_ = engine;
  held_ = HeldResults(budget, kMaxHeldPerCallBytes);
  facts_ = std::move(built.facts);
  parts_.reserve(built.sequences.size());
  for (BuiltSequence& sequence : built.sequences) {
    Part part;
    part.index = sequence.request.index;
    part.echo = std::move(sequence.echo);
    part.mailbox = std::make_shared<Mailbox>(notify);
    sequence.request.mailbox = part.mailbox;
    const absl::StatusOr<SequenceId> id = engine->Submit(std::move(sequence.request));
    if (!id.ok()) {
      Cancel(absl::CancelledError("another sequence of the request was refused"));
      parts_.clear();
      return id.status();
    }
    part.id = *id;
    parts_.push_back(std::move(part));
  }
  return absl::OkStatus();
}

void RunningRequest::Cancel(const absl::Status& status) const {
  for (const Part& part : parts_) {
    if (!part.ended) engine_->Cancel(part.id, status);
  }
}

// What a delivery says, without its end.
void RunningRequest::Translate(Part& part, Mailbox::Delivery delivery,
                               v1::GenerateResponse* message) {
  message->set_index(part.index);
  message->mutable_ids()->Add(delivery.ids.begin(), delivery.ids.end());
  message->mutable_text()->append(std::exchange(part.echo, std::string()));
  message->mutable_text()->append(delivery.text);
  if (delivery.continuity != v1::CONTINUITY_UNSPECIFIED) {
    message->set_continuity(delivery.continuity);
  }
  for (v1::Logprobs& logprobs : delivery.logprobs) {
    part.logprob_sum += static_cast<double>(logprobs.logprob());
    if (facts_.tell_logprobs) *message->add_logprobs() = std::move(logprobs);
  }
  for (v1::Logprobs& logprobs : delivery.prompt_logprobs) {
    *message->add_prompt_logprobs() = std::move(logprobs);
  }
  if (delivery.info && !std::exchange(info_sent_, true)) {
    v1::StreamInfo* info = message->mutable_info();
    *info = *std::move(delivery.info);
    info->set_request_id(facts_.request_id);
    info->set_model(facts_.model);
    info->set_prompt_token_count(facts_.prompt_token_count);
    if (!facts_.prompt.ids().empty()) *info->mutable_prompt() = facts_.prompt;
  }
  if (delivery.finish) *message->mutable_finish() = *std::move(delivery.finish);
}

std::optional<absl::Status> RunningRequest::Take(std::vector<v1::GenerateResponse>* messages) {
  const bool chooses = facts_.best_of > facts_.n;
  bool all_ended = true;
  for (Part& part : parts_) {
    if (part.ended) continue;
    Mailbox::Delivery delivery = part.mailbox->Take();
    part.ended = delivery.ended;
    all_ended = all_ended && part.ended;
    if (delivery.empty()) continue;
    if (delivery.ended && !delivery.status.ok() && failure_.ok()) failure_ = delivery.status;
    if (chooses && failure_.ok()) failure_ = held_.Add(Mailbox::BytesOf(delivery));
    v1::GenerateResponse message;
    Translate(part, std::move(delivery), chooses ? &part.whole : &message);
    // Of a sequence that failed without a last token there is nothing to tell.
    const bool tells = message.ids_size() > 0 || !message.text().empty() || message.has_info() ||
                       message.has_finish() || message.prompt_logprobs_size() > 0;
    if (tells) messages->push_back(std::move(message));
  }
  if (!failure_.ok()) return failure_;
  if (!all_ended) return std::nullopt;
  if (chooses) {
    Choose(messages);
    held_.Clear();
  }
  return absl::OkStatus();
}

// The n with the highest mean log-probability per new token, best first; the lower index where
// equal.
void RunningRequest::Choose(std::vector<v1::GenerateResponse>* messages) {
  const auto mean = [](const Part& part) {
    return part.logprob_sum / std::max(1, part.whole.ids_size());
  };
  std::stable_sort(parts_.begin(), parts_.end(),
                   [&](const Part& a, const Part& b) { return mean(a) > mean(b); });
  v1::StreamInfo info;
  google::protobuf::RepeatedPtrField<v1::Logprobs> prompt_logprobs;
  for (Part& part : parts_) {
    if (part.whole.has_info()) info.Swap(part.whole.mutable_info());
    part.whole.clear_info();
    if (part.whole.prompt_logprobs_size() > 0) {
      prompt_logprobs.Swap(part.whole.mutable_prompt_logprobs());
    }
  }
  parts_[0].whole.mutable_info()->Swap(&info);
  parts_[0].whole.mutable_prompt_logprobs()->Swap(&prompt_logprobs);
  for (uint32_t i = 0; i < facts_.n; ++i) {
    parts_[i].whole.set_index(i);
    messages->push_back(std::move(parts_[i].whole));
  }
}

}  // namespace pergola
