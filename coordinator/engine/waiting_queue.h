// Who waits for a slot, and in which order they are served. Used by the engine thread only.
//
// Between tenants: the one to whom the fewest tokens were given so far is next (virtual token
// counter; Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A tenant that
// comes, or comes back, starts at the count of whoever was served last, so that absence earns no
// credit. Within a tenant: by priority, to which waiting adds one point per kAgingUsPerPoint. All
// age alike, so the order of two sequences never changes and one number holds it, the rank:
// submission time minus priority. A priority speaks within its tenant only: no client can take from
// others by naming a high one. Nobody starves: a tenant's count stands still while it waits, and
// nothing that comes later than 200 points of waiting goes before.
//
// Suspects (I6) are served once all have been that waited when they became suspects.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "coordinator/engine/sequence.h"
#include "coordinator/engine/time.h"

namespace pergola {

// What one point of priority is worth: 100 points go before whoever came 10 s earlier.
inline constexpr TimeUs kAgingUsPerPoint = 100'000;
// The counts of tenants that want nothing now and yet are ahead are kept for so many; then the
// least of them is forgotten.
inline constexpr size_t kIdleTenants = 4096;
// Who is preempted does not follow every token: counts within this are equal.
inline constexpr uint64_t kFairQuantumTokens = 4096;

struct Tenant {
  using Order = std::pair<int64_t, SequenceId>;  // rank, id

  std::string name;
  uint64_t served = 0;                 // tokens, prompt and new ones alike
  uint32_t sequences = 0;              // waiting or running
  std::map<Order, Sequence*> waiting;  // suspects left out
};

// Whether `a` has more claim to its blocks than `b`: readers that are awake before those that are
// not, then tenants with less, then the order within a tenant.
bool KeepsBlocksBefore(const Sequence* a, const Sequence* b);

class WaitingQueue {
 public:
  WaitingQueue() = default;
  WaitingQueue(const WaitingQueue&) = delete;
  WaitingQueue& operator=(const WaitingQueue&) = delete;

  // The sequence is accepted: sets its rank and tenant.
  void Join(Sequence& sequence);
  // It has ended; it is not in the queue.
  void Leave(Sequence& sequence);
  // Tokens were spent on it.
  void Charge(Sequence& sequence, uint64_t tokens);

  void Add(Sequence& sequence);
  void Remove(Sequence& sequence);
  // The tenant whose turn it was is served: newcomers start where it stood.
  void Served(const Sequence& sequence);

  uint32_t size() const { return static_cast<uint32_t>(ids_.size() + suspects_.size()); }
  int64_t bytes() const { return bytes_; }
  size_t tenant_count() const { return tenants_.size(); }

  enum class Verdict { kTake, kSkip, kStop };
  // Asks about one waiting sequence after the other, in order, until one is taken (it is returned)
  // or the verdict is to stop (null). `ask` must not change the queue.
  Sequence* First(const std::function<Verdict(Sequence&)>& ask);

 private:
  std::unordered_map<std::string, std::unique_ptr<Tenant>> tenants_;
  std::set<Tenant*> active_;                         // with a waiting sequence
  std::set<std::pair<uint64_t, std::string>> idle_;  // without any sequence, but ahead: by count
  std::set<SequenceId> ids_;                         // of waiting ones that are no suspects
  std::map<std::pair<SequenceId, SequenceId>, Sequence*> suspects_;  // by queue_order, id
  std::vector<Tenant*> heap_;                                        // scratch of First
  uint64_t floor_ = 0;  // the count of whoever was served last
  int64_t bytes_ = 0;
};

}  // namespace pergola
