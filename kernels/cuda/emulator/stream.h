// Where work goes that is put on a stream: done at once, kept by the graph that the stream
// captures, or deferred. Private to the emulator.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/runtime_api.h"

namespace pergola::emulator {

// One piece of a stream's work. A copy of work that has not begun begins anew.
class Work {
 public:
  // Tries to go on; true when done.
  using Attempt = std::function<bool()>;

  explicit Work(std::function<void()> run) : run_(std::move(run)) {}
  // Work that waits for other ranks: tried until it is done.
  static Work Waiting(std::function<Attempt()> begin) {
    Work work(nullptr);
    work.begin_ = std::move(begin);
    return work;
  }
  bool Advance() {
    if (run_) {
      run_();
      return true;
    }
    if (!attempt_) attempt_ = begin_();
    return attempt_();
  }

 private:
  std::function<void()> run_;
  std::function<Attempt()> begin_;
  Attempt attempt_;
};

// Does `work`, captures or defers it; an error (recorded as this thread's last) if the stream
// cannot take it.
cudaError_t Enqueue(cudaStream_t stream, std::function<void()> work);
// The same; what is behind work that waits waits too.
cudaError_t Enqueue(cudaStream_t stream, Work work);

// The same for a kernel. run(previous) runs it; `previous`, where it is not empty, is the kernel
// before it, which runs when this one first awaits it (emulator.h, SetOverlap). `early`: it may be
// given one.
using Action = std::function<void()>;
cudaError_t EnqueueKernel(cudaStream_t stream, std::function<void(const Action& previous)> run,
                          bool early);

// Remembers an error as the calling thread's last and returns it.
cudaError_t Report(cudaError_t error);

// Device memory that the driver takes for itself, or gives back where it is negative.
cudaError_t TakeDriverMemory(int64_t bytes);

// The error that a call of this kind must give now (emulator.h, FailCall), or 0.
int TakeFailure(FailingCall call);
// The same of CUDA's own calls, reported.
cudaError_t TakeCudaFailure(FailingCall call);

// What a call returns that CUDA does not allow while something is captured (it makes the capture
// invalid), or cudaSuccess.
cudaError_t RefuseDuringCapture();

// Whether work put on the stream now may be done later only.
bool Delays(cudaStream_t stream);
// Whether CUDA allocated all of it on the device.
bool IsDeviceMemory(const void* pointer, size_t bytes);
// Does what is deferred: of the stream, of all streams of this thread.
void RunDeferred(cudaStream_t stream);
void RunAllDeferred();

}  // namespace pergola::emulator
