// What a CudaStream hands out.
#pragma once

#include <cuda_runtime.h>

#include "kernels/stream.h"

namespace pergola {

class CudaRecording final : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph_(graph) {}
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;
  ~CudaRecording() override { static_cast<void>(cudaGraphExecDestroy(graph_)); }
  cudaGraphExec_t graph() const { return graph_; }

 private:
  const cudaGraphExec_t graph_;
};

class CudaEvent final : public StreamEvent {
 public:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() override { static_cast<void>(cudaEventDestroy(event_)); }
  cudaEvent_t event() const { return event_; }

 private:
  const cudaEvent_t event_;
};

}  // namespace pergola
