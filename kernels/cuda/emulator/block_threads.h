// OS threads for the blocks of a grid that run at once. One set per launching thread, kept between
// launches: a block's fibers are not made anew each time. Private to the emulator.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace pergola::emulator {

class BlockThreads {
 public:
  BlockThreads() = default;
  ~BlockThreads();
  BlockThreads(const BlockThreads&) = delete;
  BlockThreads& operator=(const BlockThreads&) = delete;

  // Calls run(block) for each of `blocks`, begun in that order, on as many threads; returns when
  // all have returned. Thread i always gets block i.
  void Run(const std::vector<int64_t>& blocks, const std::function<void(int64_t)>& run);

 private:
  struct Worker {
    Mutex mutex;
    CondVar changed;
    const std::function<void(int64_t)>* run GUARDED_BY(mutex) = nullptr;  // nullptr: idle
    bool stopping GUARDED_BY(mutex) = false;
    std::thread thread;
  };
  static void Loop(Worker* worker, int64_t block);

  std::vector<std::unique_ptr<Worker>> workers_;  // by block
};

}  // namespace pergola::emulator
