#include "worker/comm/shm_communicator.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <ctime>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr int kMaxRanks = 1024;
constexpr int64_t kLine = 64;  // of the cache, so that ranks do not share one

// About 50 to 100 microseconds, the time that peers with cores of their own differ by; a futex
// sleep costs as much.
constexpr int kSpins = 2000;
// Where ranks share cores, a yield lets the one that is waited for run, for a tenth of what going
// to sleep and being woken costs.
constexpr int kYields = 20;
// A sleeper looks up this often for Abandon, which it can miss while going to sleep.
constexpr int64_t kSleepNs = 100'000'000;
constexpr int64_t kIdleSleepNs = 1'000'000'000;
// While messages are under way, so that they move on during a wait.
constexpr int64_t kBusySleepNs = 200'000;
// Up to this many floats read by every rank, one barrier and redundant sums beat two barriers.
constexpr int64_t kSmallFloats = 32 << 10;
// Floats summed at once: stays in the first-level cache while the ranks' parts are added.
constexpr int64_t kSumFloats = 1024;

int64_t RoundUp(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The word lies in memory of several processes, so the private flag would lose wake-ups.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns) {
  const timespec timeout = {timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

struct ShmCommunicator::Header {
  alignas(kLine) std::atomic<uint32_t> arrived{0};
  alignas(kLine) std::atomic<uint32_t> generation{0};
  alignas(kLine) std::atomic<uint32_t> sleepers{0};
  std::atomic<uint32_t> abandoned{0};
  // Barriers that each rank has reached: tells a watchdog who is missing.
  alignas(kLine) std::atomic<uint64_t> reached[kMaxRanks] = {};
};

static_assert(std::atomic<uint32_t>::is_always_lock_free, "a lock would not work across processes");
static_assert(std::atomic<uint64_t>::is_always_lock_free, "a lock would not work across processes");

int64_t ShmCommunicator::RegionBytes(const ShmOptions& options) {
  return RoundUp(sizeof(Header), kLine) +
         (2 * static_cast<int64_t>(options.size) + 1) * options.chunk_bytes;
}

void ShmCommunicator::Format(SharedRegion& region) {
  new (region.data()) Header;
}

ShmCommunicator::ShmCommunicator(std::shared_ptr<SharedRegion> region, const ShmOptions& options)
    : region_(std::move(region)),
      options_(options),
      header_(std::launder(reinterpret_cast<Header*>(region_->data()))) {
  PERGOLA_CHECK(options.size >= 1 && options.size <= kMaxRanks && options.rank >= 0 &&
                options.rank < options.size);
  PERGOLA_CHECK(options.chunk_bytes >= kLine && options.chunk_bytes % kLine == 0);
  PERGOLA_CHECK(region_->bytes() >= RegionBytes(options) && options.board != nullptr);
}

uint8_t* ShmCommunicator::In(int rank) const {
  const int64_t index = static_cast<int64_t>(round_ % 2) * options_.size + rank;
  return region_->data() + RoundUp(sizeof(Header), kLine) + index * options_.chunk_bytes;
}

uint8_t* ShmCommunicator::Out() const {
  return region_->data() + RoundUp(sizeof(Header), kLine) +
         2 * static_cast<int64_t>(options_.size) * options_.chunk_bytes;
}

void ShmCommunicator::Abandon() {
  header_->abandoned.store(1, std::memory_order_seq_cst);
  FutexWakeAll(&header_->generation);
}

int ShmCommunicator::FirstMissingRank() const {
  for (int rank = 0; rank < options_.size; ++rank) {
    if (header_->reached[rank].load(std::memory_order_relaxed) < barriers_) {
      return options_.first_world_rank + rank;
    }
  }
  return -1;
}

bool ShmCommunicator::SpinForGeneration(uint32_t generation) const {
  for (int spin = 0; spin < (options_.spin ? kSpins : kYields); ++spin) {
    if (header_->generation.load(std::memory_order_acquire) != generation) return true;
    if (options_.spin) {
      CpuRelax();
    } else {
      sched_yield();
    }
  }
  return false;
}

absl::Status ShmCommunicator::SleepForGeneration(uint32_t generation, Urgency urgency) {
  const bool watched = urgency == Urgency::kIdle && watch_;
  const int64_t longest_ns = urgency == Urgency::kIdle && !watched ? kIdleSleepNs : kSleepNs;
  while (header_->generation.load(std::memory_order_seq_cst) == generation) {
    if (header_->abandoned.load(std::memory_order_seq_cst) != 0) {
      return absl::UnavailableError("a rank of this stage has given up");
    }
    if (watched) RETURN_IF_ERROR(watch_());
    const int64_t sleep_ns = RunBackground() ? kBusySleepNs : longest_ns;
    header_->sleepers.fetch_add(1, std::memory_order_seq_cst);
    FutexWait(&header_->generation, generation, sleep_ns);
    header_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
  return absl::OkStatus();
}

// The generation word tells the rounds apart, so a fast rank that is already at the next barrier
// disturbs nobody.
absl::Status ShmCommunicator::Barrier(const char* operation, Urgency urgency) {
  ++barriers_;
  header_->reached[options_.rank].store(barriers_, std::memory_order_relaxed);
  const uint32_t generation = header_->generation.load(std::memory_order_acquire);
  const auto size = static_cast<uint32_t>(options_.size);
  if (header_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    header_->arrived.store(0, std::memory_order_relaxed);
    // Sequentially consistent with the sleepers' counter: either this rank sees the sleeper, or the
    // sleeper's futex call sees the new generation.
    header_->generation.store(generation + 1, std::memory_order_seq_cst);
    if (header_->sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(&header_->generation);
    return absl::OkStatus();
  }
  if (SpinForGeneration(generation)) return absl::OkStatus();
  ScopedWait wait(*options_.board, operation, barriers_, FirstMissingRank());
  return SleepForGeneration(generation, urgency);
}

void ShmCommunicator::SumSlice(int64_t begin, int64_t end, float* out) const {
  for (int64_t at = begin; at < end; at += kSumFloats) {
    const int64_t count = std::min(kSumFloats, end - at);
    float* __restrict sum = out + (at - begin);
    const float* __restrict first = reinterpret_cast<const float*>(In(0)) + at;
    const float* __restrict second = reinterpret_cast<const float*>(In(1)) + at;
    for (int64_t i = 0; i < count; ++i) sum[i] = first[i] + second[i];
    for (int rank = 2; rank < options_.size; ++rank) {
      const float* __restrict part = reinterpret_cast<const float*>(In(rank)) + at;
      for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
    }
  }
}

absl::Status ShmCommunicator::ReduceSmall(float* data, int64_t count) {
  RETURN_IF_ERROR(Barrier("all-reduce", Urgency::kNormal));
  SumSlice(0, count, data);
  return absl::OkStatus();
}

absl::Status ShmCommunicator::ReduceLarge(float* data, int64_t count) {
  // Slices end on cache lines so that no two ranks write the same one.
  const int64_t slice = RoundUp((count + options_.size - 1) / options_.size, kLine / 4);
  const int64_t begin = std::min(count, slice * options_.rank);
  const int64_t end = std::min(count, begin + slice);
  RETURN_IF_ERROR(Barrier("all-reduce", Urgency::kNormal));
  auto* out = reinterpret_cast<float*>(Out());
  SumSlice(begin, end, out + begin);
  RETURN_IF_ERROR(Barrier("all-reduce (second half)", Urgency::kNormal));
  std::memcpy(data, out, count * sizeof(float));
  return absl::OkStatus();
}

absl::Status ShmCommunicator::AllReduce(float* data, int64_t count) {
  RunBackground();
  if (options_.size == 1) return absl::OkStatus();
  const int64_t chunk = options_.chunk_bytes / static_cast<int64_t>(sizeof(float));
  for (int64_t at = 0; at < count; at += chunk) {
    const int64_t now = std::min(chunk, count - at);
    ++round_;
    std::memcpy(In(options_.rank), data + at, now * sizeof(float));
    RETURN_IF_ERROR(now * options_.size <= kSmallFloats ? ReduceSmall(data + at, now)
                                                        : ReduceLarge(data + at, now));
  }
  return absl::OkStatus();
}

absl::Status ShmCommunicator::AllGather(const void* in, int64_t bytes, void* out) {
  RunBackground();
  const auto* mine = static_cast<const uint8_t*>(in);
  auto* all = static_cast<uint8_t*>(out);
  uint8_t* own_place = all + options_.rank * bytes;
  if (mine != own_place) std::memmove(own_place, mine, bytes);
  if (options_.size == 1) return absl::OkStatus();
  for (int64_t at = 0; at < bytes; at += options_.chunk_bytes) {
    const int64_t now = std::min(options_.chunk_bytes, bytes - at);
    ++round_;
    std::memcpy(In(options_.rank), own_place + at, now);
    RETURN_IF_ERROR(Barrier("all-gather", Urgency::kNormal));
    for (int rank = 0; rank < options_.size; ++rank) {
      if (rank != options_.rank) std::memcpy(all + rank * bytes + at, In(rank), now);
    }
  }
  return absl::OkStatus();
}

absl::Status ShmCommunicator::Broadcast(void* data, int64_t bytes, int root, bool idle) {
  if (options_.size == 1) return absl::OkStatus();
  const bool sender = options_.rank == root;
  auto* place = static_cast<uint8_t*>(data);
  for (int64_t at = 0; at < bytes; at += options_.chunk_bytes) {
    const int64_t now = std::min(options_.chunk_bytes, bytes - at);
    ++round_;
    if (sender) std::memcpy(In(root), place + at, now);
    // Only the first chunk is waited for idly; once the root is there, the rest follows at once.
    const bool may_idle = idle && !sender && at == 0;
    RETURN_IF_ERROR(Barrier("broadcast", may_idle ? Urgency::kIdle : Urgency::kNormal));
    if (!sender) std::memcpy(place + at, In(root), now);
  }
  return absl::OkStatus();
}

}  // namespace pergola
