#include "coordinator/engine/waiting_queue.h"

#include <algorithm>

#include "base/check.h"

namespace pergola {
namespace {

int64_t BytesOf(const Sequence& sequence) {
  return static_cast<int64_t>(sequence.known.size() * sizeof(int32_t));
}

// For a heap whose front was given the least; names make the order total.
bool GivenMore(const Tenant* a, const Tenant* b) {
  return a->served != b->served ? a->served > b->served : a->name > b->name;
}

}  // namespace

bool KeepsBlocksBefore(const Sequence* a, const Sequence* b) {
  if (a->paused != b->paused) return b->paused;
  if (a->tenant != b->tenant && a->tenant != nullptr && b->tenant != nullptr) {
    const uint64_t given_a = a->tenant->served / kFairQuantumTokens;
    const uint64_t given_b = b->tenant->served / kFairQuantumTokens;
    if (given_a != given_b) return given_a < given_b;
  }
  return a->rank != b->rank ? a->rank < b->rank : a->id < b->id;
}

void WaitingQueue::Join(Sequence& sequence) {
  const SequenceRequest& request = sequence.request;
  const int32_t priority = std::clamp(request.priority, kMinPriority, kMaxPriority);
  sequence.rank = sequence.submitted - priority * kAgingUsPerPoint;
  std::unique_ptr<Tenant>& tenant = tenants_[request.tenant];
  if (tenant == nullptr) {
    tenant = std::make_unique<Tenant>();
    tenant->name = request.tenant;
    tenant->served = floor_;
  }
  if (tenant->sequences++ == 0) idle_.erase({tenant->served, tenant->name});
  sequence.tenant = tenant.get();
}

void WaitingQueue::Leave(Sequence& sequence) {
  Tenant& tenant = *sequence.tenant;
  sequence.tenant = nullptr;
  PERGOLA_CHECK(tenant.sequences > 0);
  if (--tenant.sequences > 0) return;
  idle_.emplace(tenant.served, tenant.name);
  // Who is not ahead starts at the floor anyway and need not be remembered.
  while (!idle_.empty() && (idle_.size() > kIdleTenants || idle_.begin()->first <= floor_)) {
    tenants_.erase(idle_.begin()->second);
    idle_.erase(idle_.begin());
  }
}

void WaitingQueue::Charge(Sequence& sequence, uint64_t tokens) {
  sequence.tenant->served += tokens;
}

void WaitingQueue::Served(const Sequence& sequence) {
  floor_ = std::max(floor_, sequence.tenant->served);
}

void WaitingQueue::Add(Sequence& sequence) {
  bytes_ += BytesOf(sequence);
  if (sequence.suspect) {
    suspects_.emplace(std::make_pair(sequence.queue_order, sequence.id), &sequence);
    return;
  }
  Tenant& tenant = *sequence.tenant;
  if (tenant.waiting.empty()) {
    tenant.served = std::max(tenant.served, floor_);
    active_.insert(&tenant);
  }
  PERGOLA_CHECK(
      tenant.waiting.emplace(Tenant::Order(sequence.rank, sequence.id), &sequence).second);
  ids_.insert(sequence.id);
}

void WaitingQueue::Remove(Sequence& sequence) {
  bytes_ -= BytesOf(sequence);
  if (sequence.suspect) {
    PERGOLA_CHECK(suspects_.erase({sequence.queue_order, sequence.id}) == 1);
    return;
  }
  Tenant& tenant = *sequence.tenant;
  PERGOLA_CHECK(tenant.waiting.erase({sequence.rank, sequence.id}) == 1);
  ids_.erase(sequence.id);
  if (tenant.waiting.empty()) active_.erase(&tenant);
}

Sequence* WaitingQueue::First(const std::function<Verdict(Sequence&)>& ask) {
  auto suspect = suspects_.begin();
  for (; suspect != suspects_.end(); ++suspect) {
    if (!ids_.empty() && *ids_.begin() < suspect->first.first) break;
    const Verdict verdict = ask(*suspect->second);
    if (verdict == Verdict::kTake) return suspect->second;
    if (verdict == Verdict::kStop) return nullptr;
  }
  heap_.assign(active_.begin(), active_.end());
  std::make_heap(heap_.begin(), heap_.end(), GivenMore);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), GivenMore);
    const Tenant& tenant = *heap_.back();
    heap_.pop_back();
    for (const auto& [order, sequence] : tenant.waiting) {
      const Verdict verdict = ask(*sequence);
      if (verdict == Verdict::kTake) return sequence;
      if (verdict == Verdict::kStop) return nullptr;
    }
  }
  for (; suspect != suspects_.end(); ++suspect) {
    const Verdict verdict = ask(*suspect->second);
    if (verdict == Verdict::kTake) return suspect->second;
    if (verdict == Verdict::kStop) return nullptr;
  }
  return nullptr;
}

}  // namespace pergola
