#include "kernels/cuda/emulator/block_threads.h"

namespace pergola::emulator {

void BlockThreads::Loop(Worker* worker, int64_t block) {
  while (true) {
    const std::function<void(int64_t)>* run = nullptr;
    {
      MutexLock lock(worker->mutex);
      while (worker->run == nullptr && !worker->stopping) worker->changed.Wait(worker->mutex);
      if (worker->stopping) return;
      run = worker->run;
    }
    (*run)(block);
    MutexLock lock(worker->mutex);
    worker->run = nullptr;
    worker->changed.NotifyAll();
  }
}

BlockThreads::~BlockThreads() {
  for (const auto& worker : workers_) {
    {
      MutexLock lock(worker->mutex);
      worker->stopping = true;
    }
    worker->changed.NotifyAll();
    worker->thread.join();
  }
}

void BlockThreads::Run(const std::vector<int64_t>& blocks,
                       const std::function<void(int64_t)>& run) {
  while (workers_.size() < blocks.size()) {
    const auto block = static_cast<int64_t>(workers_.size());
    workers_.push_back(std::make_unique<Worker>());
    workers_.back()->thread = std::thread(Loop, workers_.back().get(), block);
  }
  for (const int64_t block : blocks) {
    Worker& worker = *workers_[static_cast<size_t>(block)];
    {
      MutexLock lock(worker.mutex);
      worker.run = &run;
    }
    worker.changed.NotifyAll();
  }
  for (const int64_t block : blocks) {
    Worker& worker = *workers_[static_cast<size_t>(block)];
    MutexLock lock(worker.mutex);
    while (worker.run != nullptr) worker.changed.Wait(worker.mutex);
  }
}

}  // namespace pergola::emulator
