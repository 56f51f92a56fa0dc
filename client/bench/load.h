// When the requests of a benchmark arrive. Pure: times are seconds since the start and come in as
// arguments; random ones are a function of the seed.
#pragma once

#include <cstdint>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "client/bench/random.h"

namespace pergola {

struct Arrival {
  double at_s = 0;
  uint32_t user = 0;  // to be named when the request has ended
};

class Load {
 public:
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  virtual ~Load() = default;
  // When the next request arrives; kNever: none will before a request ends.
  virtual double NextAtS() const = 0;
  // Takes that arrival; NextAtS() is not kNever.
  virtual Arrival Take() = 0;
  // The request of `user` has ended, well or not.
  virtual void Ended(uint32_t user, double now_s) = 0;
};

// Requests that come whatever the server does: bursts of `burst` requests at once, a Poisson
// process of rate_per_s / burst bursts a second; so the mean rate is rate_per_s for every burst.
class OpenLoad final : public Load {
 public:
  OpenLoad(double rate_per_s, uint32_t burst, uint64_t seed);

  double NextAtS() const override { return next_at_s_; }
  Arrival Take() override;
  void Ended(uint32_t, double) override {}

 private:
  const double mean_gap_s_;
  const uint32_t burst_;
  BenchRandom random_;
  double next_at_s_;
  uint32_t taken_of_burst_ = 0;
};

// Users with one request at a time each, who think before every request for a time uniform between
// two bounds. Users who need no time to think are a closed loop of streams.
class UserLoad final : public Load {
 public:
  struct Thinking {
    double min_s = 0;
    double max_s = 0;
  };
  UserLoad(uint32_t users, Thinking thinking, uint64_t seed);

  double NextAtS() const override { return due_.empty() ? kNever : due_.top().first; }
  Arrival Take() override;
  void Ended(uint32_t user, double now_s) override;

 private:
  using Due = std::pair<double, uint32_t>;  // when, user; users due at once come in their order

  const Thinking thinking_;
  std::vector<BenchRandom> random_;  // by user, so that one does not change another's times
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
};

}  // namespace pergola
