// EngineCore and readers that do not keep up: each pauses its own sequence, and nobody else's.
#include "absl/strings/str_cat.h"
#include "coordinator/engine/engine_core.h"

namespace pergola {
namespace {

// How often full mailboxes are looked at: what a reader that took waits at most for its next plan.
constexpr TimeUs kReaderCheckUs = 5'000;
// A sequence paused for longer makes room for others that need its slot or blocks.
constexpr TimeUs kStalledUs = 100'000;

}  // namespace

void EngineCore::Deliver(Sequence& sequence, Mailbox::Delivery delivery, TimeUs now) {
  Mailbox& mailbox = *sequence.request.mailbox;
  // It took since the last look, and tokens of plans in flight fill it again: the time starts anew.
  if (sequence.paused && !mailbox.full()) {
    sequence.paused_since = now;
    sequence.stalled = false;
  }
  if (!mailbox.Put(std::move(delivery)) || sequence.paused) return;
  sequence.paused = true;
  sequence.paused_since = now;
  ++pauses_;
  paused_.insert(sequence.id);
  next_reader_check_ = std::min(next_reader_check_, now + kReaderCheckUs);
}

void EngineCore::CheckReaders(TimeUs now) {
  if (next_reader_check_ > now) return;
  for (auto it = paused_.begin(); it != paused_.end();) {
    Sequence& sequence = *sequences_.at(*it++);
    const TimeUs paused_us = now - sequence.paused_since;
    if (!sequence.request.mailbox->full()) {
      paused_.erase(sequence.id);
      sequence.paused = sequence.stalled = false;
      sequence.paused_since = kNever;
    } else if (paused_us >= options_.slow_reader_timeout_us) {
      ++slow_readers_ended_;
      EndWithError(sequence,
                   absl::ResourceExhaustedError(absl::StrCat(
                       "the reader took nothing for ", paused_us / 1000, " ms, the limit is ",
                       options_.slow_reader_timeout_us / 1000, " ms")),
                   now);
    } else {
      sequence.stalled = paused_us >= kStalledUs;
    }
  }
  next_reader_check_ = paused_.empty() ? kNever : now + kReaderCheckUs;
}

}  // namespace pergola
