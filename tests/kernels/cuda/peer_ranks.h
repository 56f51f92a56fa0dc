// Ranks with peer memory as threads, each on a device of its own if there are several, else on the
// same one.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "gtest/gtest.h"
#include "kernels/cuda/peer_memory.h"
#include "tests/kernels/cuda/device_array.h"

namespace pergola {

// Gathers bytes among threads.
class BytesGather {
 public:
  explicit BytesGather(int size) : parts_(static_cast<size_t>(size)) {}
  absl::Status Gather(int rank, const void* in, int64_t bytes, void* out) {
    parts_[static_cast<size_t>(rank)] = in;
    Meet();
    for (size_t r = 0; r < parts_.size(); ++r) {
      std::memcpy(static_cast<char*>(out) + static_cast<int64_t>(r) * bytes, parts_[r],
                  static_cast<size_t>(bytes));
    }
    Meet();
    return absl::OkStatus();
  }
  void Meet() {
    MutexLock lock(mutex_);
    const uint64_t round = round_;
    if (++arrived_ == parts_.size()) {
      arrived_ = 0;
      ++round_;
      changed_.NotifyAll();
    }
    while (round_ == round) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<const void*> parts_;  // each written by its rank before it meets the others
  size_t arrived_ GUARDED_BY(mutex_) = 0;
  uint64_t round_ GUARDED_BY(mutex_) = 0;
};

inline int DeviceOfRank(int rank) {
  int devices = 1;
  PERGOLA_CUDA_CHECK(cudaGetDeviceCount(&devices));
  return rank % devices;
}

class PeerRanks {
 public:
  PeerRanks(int count, int64_t most_bytes, int64_t wait_ms = 60'000)
      : gather_(count), ranks_(static_cast<size_t>(count)) {
    Run([&](int rank) {
      Rank& own = ranks_[static_cast<size_t>(rank)];
      own.context = std::make_unique<TestCudaContext>(1);
      PeerOptions options;
      options.rank = rank;
      options.size = count;
      options.most_bytes = most_bytes;
      options.wait_ms = wait_ms;
      options.gather = [this, rank](const void* in, int64_t bytes, void* out) {
        return gather_.Gather(rank, in, bytes, out);
      };
      auto memory = PeerMemory::Create(options);
      own.created = memory.status();
      if (memory.ok()) own.memory = std::move(memory).value();
    });
  }
  ~PeerRanks() {
    for (Rank& rank : ranks_) rank.memory.reset();
  }

  int count() const { return static_cast<int>(ranks_.size()); }
  const absl::Status& created(int rank) const { return at(rank).created; }
  const CudaContext& context(int rank) const { return *at(rank).context; }
  PeerMemory& memory(int rank) const { return *at(rank).memory; }
  const PeerSpace& space(int rank) const { return at(rank).memory->space(); }

  // body(rank) on a thread per rank, with its device current; then waits for what it enqueued.
  void Run(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < count(); ++rank) {
      threads.emplace_back([&, rank] {
        PERGOLA_CUDA_CHECK(cudaSetDevice(DeviceOfRank(rank)));
        body(rank);
        PERGOLA_CUDA_CHECK(cudaStreamSynchronize(context(rank).stream));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  struct Rank {
    std::unique_ptr<TestCudaContext> context;
    std::unique_ptr<PeerMemory> memory;
    absl::Status created;
  };
  const Rank& at(int rank) const { return ranks_[static_cast<size_t>(rank)]; }

  BytesGather gather_;
  std::vector<Rank> ranks_;
};

}  // namespace pergola
