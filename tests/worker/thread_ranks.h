// Runs the ranks of a stage or a group as threads of this process.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"
#include "worker/comm/shm_communicator.h"
#include "worker/comm/wait_board.h"

namespace pergola {

// As in a program the log is there before the threads are: ThreadSanitizer does not see how
// spdlog's library makes it once.
inline const void* const kLog = spdlog::default_logger_raw();

// A stage of `size` ranks over heap memory.
class ThreadStage {
 public:
  explicit ThreadStage(int size, int64_t chunk_bytes = 64 << 10) : boards_(size) {
    ShmOptions options;
    options.size = size;
    options.chunk_bytes = chunk_bytes;
    auto region = SharedRegion::OnHeap(ShmCommunicator::RegionBytes(options));
    ShmCommunicator::Format(*region);
    for (int rank = 0; rank < size; ++rank) {
      boards_[rank] = std::make_unique<WaitBoard>();
      options.rank = rank;
      options.board = boards_[rank].get();
      ranks_.push_back(std::make_unique<ShmCommunicator>(region, options));
    }
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  ShmCommunicator& at(int rank) { return *ranks_[rank]; }
  WaitBoard& board(int rank) { return *boards_[rank]; }

 private:
  std::vector<std::unique_ptr<WaitBoard>> boards_;
  std::vector<std::unique_ptr<ShmCommunicator>> ranks_;
};

// Where ranks that are threads exchange texts: every rank calls Gather the same number of times.
class ThreadGather {
 public:
  explicit ThreadGather(int size) : texts_(size) {}

  std::vector<std::string> Gather(int rank, const std::string& text) {
    MutexLock lock(mutex_);
    const uint64_t generation = generation_;
    texts_[rank] = text;
    if (++arrived_ == static_cast<int>(texts_.size())) {
      arrived_ = 0;
      all_ = texts_;
      ++generation_;
      changed_.NotifyAll();
    }
    while (generation_ == generation) changed_.Wait(mutex_);
    return all_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> texts_ GUARDED_BY(mutex_);
  std::vector<std::string> all_ GUARDED_BY(mutex_);
  int arrived_ GUARDED_BY(mutex_) = 0;
  uint64_t generation_ GUARDED_BY(mutex_) = 0;
};

// Calls body(rank) on `count` threads and waits for all.
inline void OnThreads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (int rank = 0; rank < count; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace pergola
