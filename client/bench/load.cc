#include "client/bench/load.h"

namespace pergola {

OpenLoad::OpenLoad(double rate_per_s, uint32_t burst, uint64_t seed)
    : mean_gap_s_(burst / rate_per_s),
      burst_(burst),
      random_(seed, RandomPurpose::kArrivals, 0),
      next_at_s_(random_.Exponential(mean_gap_s_)) {}

Arrival OpenLoad::Take() {
  const Arrival arrival{next_at_s_, 0};
  if (++taken_of_burst_ == burst_) {
    taken_of_burst_ = 0;
    next_at_s_ += random_.Exponential(mean_gap_s_);
  }
  return arrival;
}

UserLoad::UserLoad(uint32_t users, Thinking thinking, uint64_t seed) : thinking_(thinking) {
  random_.reserve(users);
  for (uint32_t user = 0; user < users; ++user) {
    random_.emplace_back(seed, RandomPurpose::kThinking, user);
    Ended(user, 0);
  }
}

Arrival UserLoad::Take() {
  const Due due = due_.top();
  due_.pop();
  return {due.first, due.second};
}

void UserLoad::Ended(uint32_t user, double now_s) {
  due_.emplace(now_s + random_[user].Between(thinking_.min_s, thinking_.max_s), user);
}

}  // namespace pergola
