#include "coordinator/engine/engine_core.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"

namespace pergola {
namespace {

double Milliseconds(TimeUs from, TimeUs to) {
  return from == kNever || to == kNever ? 0.0 : static_cast<double>(to - from) / 1000.0;
}

// Removes from `text` what a resuming client already has. A client that names a count inside a
// character gets the next whole one.
void SkipText(uint64_t* skip, std::string* text) {
  if (*skip == 0) return;
  size_t cut = std::min<uint64_t>(*skip, text->size());
  *skip -= cut;
  while (*skip == 0 && cut < text->size() && (static_cast<uint8_t>((*text)[cut]) & 0xC0) == 0x80) {
    ++cut;
  }
  text->erase(0, cut);
}

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Takes the token at `length - 1` of the sequence into its text. Returns how the sequence ends with
// it, if it does.
std::optional<v1::Finish> TakeToken(Sequence& sequence, uint32_t length, std::string* text) {
  const int32_t id = sequence.known[length - 1];
  SequenceRequest& request = sequence.request;
  v1::Finish finish;
  if (Contains(request.eos_ids, id)) {
    finish.set_reason(v1::FINISH_REASON_EOS);
    finish.set_stop_id(id);
  } else if (Contains(request.stop_ids, id)) {
    finish.set_reason(v1::FINISH_REASON_STOP_ID);
    finish.set_stop_id(id);
  } else if (request.text != nullptr) {
    TextStream::Delta delta = request.text->Push(id);
    text->append(delta.text);
    if (delta.stopped) {
      finish.set_reason(v1::FINISH_REASON_STOP_STRING);
      finish.set_stop_string(delta.stop_string);
    }
  }
  if (finish.reason() == v1::FINISH_REASON_UNSPECIFIED) {
    if (length < sequence.max_known) return std::nullopt;
    finish.set_reason(v1::FINISH_REASON_LENGTH);
  }
  if (finish.reason() != v1::FINISH_REASON_STOP_STRING && request.text != nullptr) {
    text->append(request.text->Flush());
  }
  finish.mutable_usage()->set_completion_tokens(length - sequence.prompt_count);
  return finish;
}

// A resume: the received ids go through text and stops as if they were sampled now. Returns how the
// sequence ends with one of them, if it does; `text` is what the client does not have yet.
std::optional<v1::Finish> TakeReceived(Sequence& sequence, const std::vector<int32_t>& received,
                                       std::string* text) {
  std::optional<v1::Finish> finish;
  for (const int32_t id : received) {
    sequence.known.push_back(id);
    sequence.max_id = std::max(sequence.max_id, id);
    finish = TakeToken(sequence, static_cast<uint32_t>(sequence.known.size()), text);
    if (finish) break;
  }
  SkipText(&sequence.text_skip, text);
  return finish;
}

}  // namespace

EngineCore::EngineCore(EngineOptions options, TimeUs now, Trace* trace)
    : options_(std::move(options)), started_(now), trace_(trace) {}

EngineCore::~EngineCore() = default;

void EngineCore::Submit(SequenceId id, SequenceRequest request, TimeUs now) {
  PERGOLA_CHECK(id > newest_id_ && !request.prompt_ids.empty() && request.mailbox != nullptr);
  newest_id_ = id;
  ++requests_total_;
  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequences_.emplace(id, std::move(owned));
  sequence.id = id;
  sequence.queue_order = id;
  sequence.submitted = now;
  sequence.request = std::move(request);
  sequence.known = std::move(sequence.request.prompt_ids);
  sequence.prompt_count = static_cast<uint32_t>(sequence.known.size());
  sequence.max_known = sequence.prompt_count + sequence.request.max_new_tokens;
  waiting_.Join(sequence);
  sequence.max_id = *std::max_element(sequence.known.begin(), sequence.known.end());
  sequence.text_skip = sequence.request.received_text_bytes;
  if (sequence.request.deadline != kNever) deadlines_.emplace(sequence.request.deadline, id);
  const std::vector<int32_t> received = std::move(sequence.request.received_ids);
  sequence.numerics_id = sequence.request.resume_numerics_id;
  sequence.continued = !received.empty() || !sequence.numerics_id.empty();
  if (!sequence.numerics_id.empty()) {
    sequence.home_since = now;
    next_failover_ = std::min(next_failover_, now + options_.failover_wait_us);
  }
  Mailbox::Delivery delivery;
  std::optional<v1::Finish> finish = TakeReceived(sequence, received, &delivery.text);
  if (!finish) finish = FinishOfScoring(sequence);
  waiting_.Add(sequence);
  if (finish) return End(sequence, absl::OkStatus(), std::move(finish), std::move(delivery), now);
  // The stream's first delivery carries its info, and that needs a group: the text waits for it.
  sequence.resumed_text = std::move(delivery.text);
}

// A request for no new tokens ends when its prompt is scored.
std::optional<v1::Finish> EngineCore::FinishOfScoring(const Sequence& sequence) const {
  if (sequence.request.max_new_tokens > 0 || sequence.scores()) return std::nullopt;
  v1::Finish finish;
  finish.set_reason(v1::FINISH_REASON_LENGTH);
  return finish;
}

v1::StreamInfo EngineCore::InfoOf(const Sequence& sequence, uint64_t epoch) const {
  v1::StreamInfo info;
  info.set_request_id(sequence.request.request_id);
  info.set_seed(sequence.request.seed);
  info.set_numerics_id(sequence.numerics_id);
  info.set_epoch(epoch);
  info.set_prompt_token_count(sequence.prompt_count);
  return info;
}

// The sequence gained a token (known.back()), log-probabilities of its prompt, or both.
void EngineCore::OnAnswer(const Scheduler::Outcome& outcome, TimeUs now) {
  Sequence& sequence = *outcome.sequence;
  const v1::EntryResult& answer = *outcome.answer;
  Mailbox::Delivery delivery;
  delivery.prompt_logprobs.assign(answer.target_logprobs().begin() + outcome.first_target,
                                  answer.target_logprobs().end());
  std::optional<v1::Finish> finish = FinishOfScoring(sequence);
  if (outcome.token) {
    ++tokens_total_;
    waiting_.Charge(sequence, 1);
    sequence.losses = 0;
    sequence.suspect = false;
    sequence.queue_order = sequence.id;
    if (sequence.first_token == kNever) {
      sequence.first_token = now;
      measured_.first_token.Observe(now - sequence.submitted);
    }
    sequence.gaps.OnToken(now, &measured_.token_gap);
    delivery.ids.push_back(sequence.known.back());
    delivery.logprobs.assign(answer.logprobs().begin(), answer.logprobs().end());
    delivery.continuity = std::exchange(sequence.continuity, v1::CONTINUITY_UNSPECIFIED);
    const auto length = static_cast<uint32_t>(sequence.known.size());
    finish = TakeToken(sequence, length, &delivery.text);
    SkipText(&sequence.text_skip, &delivery.text);
  }
  if (finish) {
    End(sequence, absl::OkStatus(), std::move(finish), std::move(delivery), now);
  } else {
    Deliver(sequence, std::move(delivery), now);
  }
}

void EngineCore::End(Sequence& sequence, absl::Status status, std::optional<v1::Finish> finish,
                     Mailbox::Delivery delivery, TimeUs now) {
  if (sequence.running()) {
    sequence.scheduler->Release(sequence);
  } else {
    waiting_.Remove(sequence);
  }
  waiting_.Leave(sequence);
  paused_.erase(sequence.id);
  const auto& fork_group = sequence.request.fork_group;
  if (fork_group != nullptr && fork_group->leader == &sequence) fork_group->leader = nullptr;
  if (sequence.request.deadline != kNever) {
    deadlines_.erase({sequence.request.deadline, sequence.id});
  }
  if (!sequence.info_sent && finish) delivery.info = InfoOf(sequence, 0);
  if (finish) {
    v1::Usage& usage = *finish->mutable_usage();
    usage.set_prompt_tokens(sequence.prompt_count);
    usage.set_queue_ms(Milliseconds(sequence.submitted, sequence.first_planned));
    usage.set_first_token_ms(Milliseconds(sequence.submitted, sequence.first_token));
    usage.set_total_ms(Milliseconds(sequence.submitted, now));
  }
  MeasureEnd(sequence, status, finish ? finish->reason() : v1::FINISH_REASON_UNSPECIFIED, now);
  delivery.ended = true;
  delivery.status = std::move(status);
  delivery.finish = std::move(finish);
  // Copied out, because the door may be told last: by then nothing of the sequence is left here.
  const std::shared_ptr<Mailbox> mailbox = std::move(sequence.request.mailbox);
  sequences_.erase(sequence.id);
  for (PendingDrain& drain : drains_) drain.response.set_finished(drain.response.finished() + 1);
  mailbox->Put(std::move(delivery));
}

void EngineCore::MeasureEnd(Sequence& sequence, const absl::Status& status, v1::FinishReason finish,
                            TimeUs now) {
  sequence.gaps.OnEnd(&measured_.token_gap);
  measured_.CountEnd(status.code(), finish);
  if (!on_end_) return;
  SequenceEnd end;
  end.request_id = std::move(sequence.request.request_id);
  end.tenant = sequence.request.tenant;
  end.index = sequence.request.index;
  end.prompt_tokens = sequence.prompt_count;
  end.new_tokens = static_cast<uint32_t>(sequence.known.size()) - sequence.prompt_count;
  end.submitted = sequence.submitted;
  end.first_planned = sequence.first_planned;
  end.first_token = sequence.first_token;
  end.ended = now;
  end.status = status;
  end.finish = finish;
  on_end_(std::move(end));
}

void EngineCore::EndWithError(Sequence& sequence, absl::Status status, TimeUs now) {
  End(sequence, std::move(status), std::nullopt, Mailbox::Delivery(), now);
}

void EngineCore::Cancel(SequenceId id, const absl::Status& status, TimeUs now) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  // The end of a sequence that did not finish is an error, whatever the caller says.
  EndWithError(*it->second, status.ok() ? absl::CancelledError("cancelled") : status, now);
}

void EngineCore::ExpireSequences(TimeUs now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Sequence& sequence = *sequences_.at(deadlines_.begin()->second);
    const bool waited = sequence.first_planned == kNever;
    const double overall_ms = Milliseconds(sequence.submitted, now);
    EndWithError(
        sequence,
        absl::DeadlineExceededError(absl::StrCat(
            "the deadline passed after ", overall_ms, " ms", waited ? " in the waiting queue" : "",
            ", with ", sequence.known.size() - sequence.prompt_count, " new tokens")),
        now);
  }
}

void EngineCore::EndAll(const absl::Status& status, TimeUs now) {
  std::vector<SequenceId> ids;
  ids.reserve(sequences_.size());
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const SequenceId id : ids) EndWithError(*sequences_.at(id), status, now);
  const auto ended = static_cast<uint32_t>(ids.size());
  for (PendingDrain& drain : drains_) {
    // End() counted them as finished by themselves.
    drain.response.set_finished(drain.response.finished() - ended);
    drain.response.set_cancelled(drain.response.cancelled() + ended);
  }
}

void EngineCore::Drain(int64_t timeout_us, std::function<void(v1::DrainResponse)> done,
                       TimeUs now) {
  draining_ = true;
  const int64_t wait = std::max<int64_t>(0, timeout_us);
  drains_.push_back({wait > kNever - now ? kNever : now + wait, std::move(done), {}});
}

void EngineCore::AdvanceDrains(TimeUs now) {
  if (drains_.empty()) return;
  const bool over = std::any_of(drains_.begin(), drains_.end(),
                                [&](const PendingDrain& drain) { return drain.deadline <= now; });
  if (!sequences_.empty() && !over) return;
  EndAll(absl::UnavailableError("the coordinator drains and its time for that is over"), now);
  std::vector<PendingDrain> drains = std::move(drains_);
  drains_.clear();
  for (PendingDrain& drain : drains) drain.done(drain.response);
}

void EngineCore::Advance(TimeUs now) {
  ExpireSequences(now);
  CheckTimeouts(now);
  CheckReaders(now);
  Pump(now);
  AdvanceDrains(now);
}

TimeUs EngineCore::NextWake() const {
  TimeUs wake = std::min(next_failover_, next_reader_check_);
  if (!deadlines_.empty()) wake = std::min(wake, deadlines_.begin()->first);
  for (const PendingDrain& drain : drains_) wake = std::min(wake, drain.deadline);
  for (const auto& [name, group] : groups_) {
    if (!group->ready()) continue;
    if (!group->sent.empty() || group->results_connection == 0) {
      wake = std::min(wake, group->head_since + options_.step_timeout_us);
    } else if (group->last_sent != kNever) {
      wake = std::min(wake, group->last_sent + options_.probe_interval_us);
    }
  }
  return wake;
}

}  // namespace pergola
