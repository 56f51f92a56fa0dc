// Where work goes that is put on a stream: done at once, kept by the graph that the stream
// captures, or deferred. Private to the emulator.
#pragma once

#include <functional>

#include "kernels/cuda/emulator/runtime_api.h"

namespace pergola::emulator {

// Does `work`, captures or defers it; an error (recorded as this thread's last) if the stream
// cannot take it.
using Work = std::function<void()>;
cudaError_t Enqueue(cudaStream_t stream, Work work);

// The same for a kernel. run(previous) runs it; `previous`, where it is not empty, is the kernel
// before it, which runs when this one first awaits it (emulator.h, SetOverlap). `early`: it may be
// given one.
cudaError_t EnqueueKernel(cudaStream_t stream, std::function<void(const Work& previous)> run,
                          bool early);

// Remembers an error as the calling thread's last and returns it.
cudaError_t Report(cudaError_t error);

// What a call returns that CUDA does not allow while something is captured (it makes the capture
// invalid), or cudaSuccess.
cudaError_t RefuseDuringCapture();

bool Deferred();
// Does what is deferred: of the stream, of all streams of this thread.
void RunDeferred(cudaStream_t stream);
void RunAllDeferred();

}  // namespace pergola::emulator
