#include "coordinator/engine/mailbox.h"

#include <iterator>
#include <utility>

#include "base/check.h"

namespace pergola {
namespace {

size_t LogprobBytes(const std::vector<v1::Logprobs>& logprobs) {
  size_t bytes = logprobs.size() * sizeof(v1::Logprobs);
  for (const v1::Logprobs& one : logprobs) {
    bytes += static_cast<size_t>(one.top_ids_size()) * (sizeof(int32_t) + sizeof(float));
  }
  return bytes;
}

void Append(std::vector<v1::Logprobs>* to, std::vector<v1::Logprobs>* from) {
  to->insert(to->end(), std::make_move_iterator(from->begin()),
             std::make_move_iterator(from->end()));
}

}  // namespace

size_t Mailbox::BytesOf(const Delivery& delivery) {
  return delivery.ids.size() * sizeof(int32_t) + delivery.text.size() +
         LogprobBytes(delivery.logprobs) + LogprobBytes(delivery.prompt_logprobs);
}

bool Mailbox::Put(Delivery delivery) {
  bool was_empty = false;
  bool full = false;
  {
    MutexLock lock(mutex_);
    PERGOLA_CHECK(!ended_);
    was_empty = pending_.empty();
    bytes_ += BytesOf(delivery);
    if (was_empty) {
      // What an empty one may hold is a continuity that is still to be told.
      const v1::Continuity continuity = pending_.continuity;
      pending_ = std::move(delivery);
      if (continuity > pending_.continuity) pending_.continuity = continuity;
    } else {
      pending_.ids.insert(pending_.ids.end(), delivery.ids.begin(), delivery.ids.end());
      pending_.text += delivery.text;
      Append(&pending_.logprobs, &delivery.logprobs);
      Append(&pending_.prompt_logprobs, &delivery.prompt_logprobs);
      if (delivery.info) pending_.info = std::move(delivery.info);
      // SEMANTIC is the larger value: of two replays in one delivery the weaker promise is told.
      if (delivery.continuity > pending_.continuity) pending_.continuity = delivery.continuity;
      pending_.ended = delivery.ended;
      pending_.status = std::move(delivery.status);
      pending_.finish = std::move(delivery.finish);
    }
    ended_ = pending_.ended;
    was_empty = was_empty && !pending_.empty();
    full = FullLocked();
  }
  if (was_empty) notify_();
  return full;
}

bool Mailbox::full() const {
  MutexLock lock(mutex_);
  return FullLocked();
}

Mailbox::Delivery Mailbox::Take() {
  MutexLock lock(mutex_);
  Delivery taken = std::move(pending_);
  pending_ = Delivery();
  bytes_ = 0;
  return taken;
}

}  // namespace pergola
