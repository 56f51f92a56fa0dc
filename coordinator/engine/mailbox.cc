#include "coordinator/engine/mailbox.h"

#include <utility>

#include "base/check.h"

namespace pergola {

void Mailbox::Put(Delivery delivery) {
  bool was_empty = false;
  {
    MutexLock lock(mutex_);
    PERGOLA_CHECK(!ended_);
    was_empty = pending_.empty();
    if (was_empty) {
      // What an empty one may hold is a continuity that is still to be told.
      const v1::Continuity continuity = pending_.continuity;
      pending_ = std::move(delivery);
      if (continuity > pending_.continuity) pending_.continuity = continuity;
    } else {
      pending_.ids.insert(pending_.ids.end(), delivery.ids.begin(), delivery.ids.end());
      pending_.text += delivery.text;
      if (delivery.info) pending_.info = std::move(delivery.info);
      // SEMANTIC is the larger value: of two replays in one delivery the weaker promise is told.
      if (delivery.continuity > pending_.continuity) pending_.continuity = delivery.continuity;
      pending_.ended = delivery.ended;
      pending_.status = std::move(delivery.status);
      pending_.finish = std::move(delivery.finish);
    }
    ended_ = pending_.ended;
    was_empty = was_empty && !pending_.empty();
  }
  if (was_empty) notify_();
}

Mailbox::Delivery Mailbox::Take() {
  MutexLock lock(mutex_);
  Delivery taken = std::move(pending_);
  pending_ = Delivery();
  return taken;
}

}  // namespace pergola
