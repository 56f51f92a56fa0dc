// Streams, events and capture of the emulated runtime API.
#include "kernels/cuda/emulator/stream.h"

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/graph.h"
#include "kernels/cuda/emulator/stream_queue.h"

namespace pergola::emulator {
namespace {

struct Capture {
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  std::set<cudaStream_t> streams;  // all it has reached, but for the origin
  WorkList work;                   // in the order of the calls, which no dependency runs against
};

// How many captured operations of each stream came before a point: a vector clock.
using Clock = std::map<cudaStream_t, int64_t>;

}  // namespace
}  // namespace pergola::emulator

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

struct CUstream_st {
  unsigned flags = 0;
  // Set while it captures; shared with the other streams that the capture has reached.
  std::shared_ptr<pergola::emulator::Capture> capture;
  pergola::emulator::Clock clock;
  std::shared_ptr<pergola::emulator::StreamQueue> queue;
};

struct CUevent_st {
  unsigned flags = 0;
  bool recorded = false;
  // When its turn came; shared with the deferred work that says so.
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
  // Where it stands, if it was last recorded on a stream with deferred work.
  std::shared_ptr<pergola::emulator::StreamQueue> queue;
  int64_t number = 0;
  // Set if it was last recorded in a capture.
  std::weak_ptr<pergola::emulator::Capture> capture;
  bool captured = false;
  pergola::emulator::Clock clock;
};

namespace pergola::emulator {
namespace {

std::atomic<bool> deferred_setting{false};

// All captures under way in the process, and the lock of every stream's and event's state.
struct Captures {
  Mutex mutex;
  std::set<std::shared_ptr<Capture>> active GUARDED_BY(mutex);
  static Captures& Instance() {
    static Captures captures;
    return captures;
  }
};

cudaError_t Invalidate(Capture* capture, cudaError_t error) {
  capture->invalid = true;
  return error;
}

// Puts work into the stream's capture; false (and no error) if it captures nothing.
bool TryCapture(cudaStream_t stream, Work* work, cudaError_t* error) {
  Captures& all = Captures::Instance();
  MutexLock lock(all.mutex);
  *error = cudaSuccess;
  if (stream == nullptr) {
    // The legacy stream would wait for every stream that is not NonBlocking.
    for (const auto& capture : all.active) {
      if ((capture->origin->flags & cudaStreamNonBlocking) == 0) {
        *error = Invalidate(capture.get(), cudaErrorStreamCaptureImplicit);
      }
    }
    return *error != cudaSuccess;
  }
  if (stream->capture == nullptr) return false;
  if (stream->capture->invalid) {
    *error = cudaErrorStreamCaptureInvalidated;
    return true;
  }
  ++stream->clock[stream];
  stream->capture->work.push_back(std::move(*work));
  return true;
}

void Merge(Clock* clock, const Clock& other) {
  for (const auto& [stream, count] : other) {
    int64_t& own = (*clock)[stream];
    own = own < count ? count : own;
  }
}

}  // namespace

namespace {

std::atomic<bool> overlap_setting{false};

// The last kernel that came up on this thread, if it has not run: the next one may begin before it.
thread_local Action held_kernel;

void RunHeld() {
  if (held_kernel) std::exchange(held_kernel, nullptr)();
}

// Whether work goes on without being asked for. Not with kernels that overlap: the one that is held
// belongs to the thread that ran the one before.
bool GoesOnByItself() {
  return !deferred_setting && !overlap_setting;
}

cudaError_t EnqueueAny(cudaStream_t stream, Work work) {
  cudaError_t error;
  if (TryCapture(stream, &work, &error)) return Report(error);
  if (stream == nullptr) {
    RunDeferred(nullptr);
    StreamQueue legacy;
    legacy.Push(std::move(work), /*by_itself=*/false);
    legacy.RunAll();
    return cudaSuccess;
  }
  if (!deferred_setting && stream->queue->TryAll() && work.Advance()) return cudaSuccess;
  stream->queue->Push(std::move(work), GoesOnByItself());
  return cudaSuccess;
}

}  // namespace

cudaError_t Enqueue(cudaStream_t stream, std::function<void()> work) {
  if (!overlap_setting) return EnqueueAny(stream, Work(std::move(work)));
  return EnqueueAny(stream, Work([work = std::move(work)] {
                      RunHeld();
                      work();
                    }));
}

cudaError_t Enqueue(cudaStream_t stream, Work work) {
  if (!overlap_setting) return EnqueueAny(stream, std::move(work));
  return EnqueueAny(stream, Work::Waiting([work = std::move(work)] {
                      RunHeld();
                      return [work]() mutable { return work.Advance(); };
                    }));
}

cudaError_t EnqueueKernel(cudaStream_t stream, std::function<void(const Action& previous)> run,
                          bool early) {
  if (!overlap_setting) {
    return EnqueueAny(stream, Work([run = std::move(run)] { run(nullptr); }));
  }
  return EnqueueAny(stream, Work([run = std::move(run), early] {
                      const Action previous = std::exchange(held_kernel, nullptr);
                      if (early && previous) return run(previous);
                      if (previous) previous();
                      held_kernel = [run] { run(nullptr); };
                    }));
}

void SetOverlap(bool overlap) {
  overlap_setting = overlap;
}

void SetDeferred(bool deferred) {
  deferred_setting = deferred;
}

bool Delays(cudaStream_t stream) {
  return deferred_setting || (stream != nullptr && !stream->queue->Empty());
}

void RunDeferred(cudaStream_t stream) {
  if (stream != nullptr) {
    stream->queue->RunAll();
  } else {
    ThreadQueues::Own().RunAll(true);
  }
  RunHeld();
}

void RunAllDeferred() {
  ThreadQueues::Own().RunAll(false);
  RunHeld();
}

cudaError_t RefuseDuringCapture() {
  Captures& all = Captures::Instance();
  MutexLock lock(all.mutex);
  cudaError_t error = cudaSuccess;
  for (const auto& capture : all.active) {
    const bool own = capture->thread == std::this_thread::get_id();
    if (capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && own)) {
      error = Invalidate(capture.get(), cudaErrorStreamCaptureUnsupported);
    }
  }
  return Report(error);
}

namespace {

// Of a call that would wait for the stream.
cudaError_t RefuseWaiting(cudaStream_t stream) {
  const cudaError_t failure = TakeCudaFailure(FailingCall::kWait);
  if (failure != cudaSuccess) return failure;
  {
    MutexLock lock(Captures::Instance().mutex);
    if (stream != nullptr && stream->capture != nullptr) {
      return Report(Invalidate(stream->capture.get(), cudaErrorStreamCaptureUnsupported));
    }
  }
  return RefuseDuringCapture();
}

cudaError_t RefuseWaiting(cudaEvent_t event) {
  if (event == nullptr) return Report(cudaErrorInvalidResourceHandle);
  const cudaError_t failure = TakeCudaFailure(FailingCall::kWait);
  if (failure != cudaSuccess) return failure;
  {
    MutexLock lock(Captures::Instance().mutex);
    if (event->captured) {
      if (const auto capture = event->capture.lock()) capture->invalid = true;
      return Report(cudaErrorCapturedEvent);
    }
  }
  return RefuseDuringCapture();
}

// Of an event that was not recorded in a capture.
cudaError_t WaitForRecorded(cudaStream_t stream, const CUevent_st& event) {
  if (stream != nullptr) {
    // A captured stream must not depend on work outside of its capture.
    MutexLock lock(Captures::Instance().mutex);
    if (stream->capture != nullptr && event.recorded) {
      return Report(Invalidate(stream->capture.get(), cudaErrorStreamCaptureIsolation));
    }
  }
  if (event.queue == nullptr) return cudaSuccess;
  return Enqueue(stream, Work::Waiting([queue = event.queue, number = event.number] {
                   return [=] {
                     return queue->Done(number) ||
                            (!queue->GoesOnByItself() && queue->TryThrough(number));
                   };
                 }));
}

}  // namespace
}  // namespace pergola::emulator

using pergola::emulator::Captures;
using pergola::emulator::RefuseDuringCapture;
using pergola::emulator::RefuseWaiting;
using pergola::emulator::Report;

cudaError_t cudaDeviceSynchronize() {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused == cudaSuccess) pergola::emulator::RunAllDeferred();
  return refused;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (stream == nullptr || flags > cudaStreamNonBlocking) return Report(cudaErrorInvalidValue);
  *stream = new CUstream_st();
  (*stream)->flags = flags;
  (*stream)->queue =
      pergola::emulator::ThreadQueues::Own().Make((flags & cudaStreamNonBlocking) == 0);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr) return Report(cudaErrorInvalidResourceHandle);
  {
    Captures& all = Captures::Instance();
    pergola::MutexLock lock(all.mutex);
    if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      stream->capture->streams.erase(stream);
      if (stream->capture->origin == stream) {
        for (cudaStream_t other : stream->capture->streams) other->capture = nullptr;
        all.active.erase(stream->capture);
      }
    }
  }
  stream->queue->RunAll();
  stream->queue->Stop();
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t refused = RefuseWaiting(stream);
  if (refused == cudaSuccess) pergola::emulator::RunDeferred(stream);
  return refused;
}

// A query lets one piece of work pass, so that a loop of queries ends.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const cudaError_t refused = RefuseWaiting(stream);
  if (refused != cudaSuccess) return refused;
  if (stream == nullptr || stream->queue->Empty()) {
    pergola::emulator::RunHeld();
    return refused;
  }
  stream->queue->RunOne();
  return Report(cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  if (event == nullptr) return Report(cudaErrorInvalidResourceHandle);
  if (!event->captured) return pergola::emulator::WaitForRecorded(stream, *event);
  pergola::MutexLock lock(Captures::Instance().mutex);
  const auto capture = event->capture.lock();
  if (capture == nullptr) return cudaSuccess;  // the capture has ended
  if (stream == nullptr) {
    capture->invalid = true;
    return Report(cudaErrorStreamCaptureImplicit);
  }
  if (stream->capture != nullptr && stream->capture != capture) {
    capture->invalid = stream->capture->invalid = true;
    return Report(cudaErrorStreamCaptureMerge);
  }
  if (capture->invalid) return Report(cudaErrorStreamCaptureInvalidated);
  if (stream->capture == nullptr) stream->clock.clear();
  stream->capture = capture;
  if (stream != capture->origin) capture->streams.insert(stream);
  pergola::emulator::Merge(&stream->clock, event->clock);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (event == nullptr) return Report(cudaErrorInvalidValue);
  *event = new CUevent_st();
  (*event)->flags = flags;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event == nullptr) return Report(cudaErrorInvalidResourceHandle);
  pergola::MutexLock lock(Captures::Instance().mutex);
  event->recorded = true;
  event->captured = stream != nullptr && stream->capture != nullptr;
  if (event->captured) {
    if (stream->capture->invalid) return Report(cudaErrorStreamCaptureInvalidated);
    event->capture = stream->capture;
    event->clock = stream->clock;
    return cudaSuccess;
  }
  event->time = std::make_shared<std::chrono::steady_clock::time_point>();
  event->queue = nullptr;
  const auto mark = [time = event->time] {
    pergola::emulator::RunHeld();
    *time = std::chrono::steady_clock::now();
  };
  if (stream != nullptr && !stream->queue->Empty()) {
    event->queue = stream->queue;
    event->number = stream->queue->Push(pergola::emulator::Work(mark), /*by_itself=*/false);
  } else {
    mark();
  }
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cudaError_t refused = RefuseWaiting(event);
  if (refused == cudaSuccess && event->queue != nullptr) event->queue->RunThrough(event->number);
  return refused;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const cudaError_t refused = RefuseWaiting(event);
  if (refused != cudaSuccess || event->queue == nullptr) return refused;
  if (event->queue->Done(event->number)) return cudaSuccess;
  event->queue->RunOne();
  return Report(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (milliseconds == nullptr || begin == nullptr || end == nullptr || !begin->recorded ||
      !end->recorded || ((begin->flags | end->flags) & cudaEventDisableTiming) != 0) {
    return Report(cudaErrorInvalidResourceHandle);
  }
  if (begin->captured || end->captured) return Report(cudaErrorCapturedEvent);
  for (const cudaEvent_t event : {begin, end}) {
    if (event->queue != nullptr && !event->queue->Done(event->number)) return cudaErrorNotReady;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event == nullptr) return Report(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) return Report(cudaErrorStreamCaptureUnsupported);
  Captures& all = Captures::Instance();
  pergola::MutexLock lock(all.mutex);
  if (stream->capture != nullptr) return Report(cudaErrorIllegalState);
  auto capture = std::make_shared<pergola::emulator::Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  stream->capture = capture;
  stream->clock.clear();
  all.active.insert(std::move(capture));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || graph == nullptr) return Report(cudaErrorInvalidValue);
  *graph = nullptr;
  Captures& all = Captures::Instance();
  pergola::MutexLock lock(all.mutex);
  const auto capture = stream->capture;
  if (capture == nullptr) return Report(cudaErrorIllegalState);
  if (capture->origin != stream) {
    capture->invalid = true;
    return Report(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return Report(cudaErrorStreamCaptureWrongThread);
  }
  all.active.erase(capture);
  // The capture ends for all streams it reached; each must have been joined back.
  bool unjoined = false;
  for (cudaStream_t other : capture->streams) {
    unjoined = unjoined || stream->clock[other] < other->clock[other];
    other->capture = nullptr;
  }
  stream->capture = nullptr;
  if (capture->invalid) return Report(cudaErrorStreamCaptureInvalidated);
  if (unjoined) return Report(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::move(capture->work)};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  pergola::MutexLock lock(Captures::Instance().mutex);
  *status = cudaStreamCaptureStatusNone;
  if (stream != nullptr && stream->capture != nullptr) {
    *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  }
  return cudaSuccess;
}

// NOLINTEND(bugprone-reserved-identifier)
