#include "kernels/cuda/emulator/graph.h"

#include "kernels/cuda/emulator/emulator.h"

using pergola::emulator::Report;

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  if (exec == nullptr || graph == nullptr) return Report(cudaErrorInvalidValue);
  const cudaError_t failure =
      pergola::emulator::TakeCudaFailure(pergola::emulator::FailingCall::kInstantiate);
  if (failure != cudaSuccess) return failure;
  const int64_t bytes = static_cast<int64_t>(graph->work.size()) *
                        pergola::emulator::GetDeviceModel().graph_node_bytes;
  const cudaError_t taken = pergola::emulator::TakeDriverMemory(bytes);
  if (taken != cudaSuccess) return Report(taken);
  *exec = new CUgraphExec_st{graph->work, bytes};
  return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* result) {
  if (exec == nullptr || graph == nullptr || result == nullptr) {
    return Report(cudaErrorInvalidValue);
  }
  const bool same = exec->work.size() == graph->work.size();
  *result = {};
  result->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
  if (!same) return Report(cudaErrorGraphExecUpdateFailure);
  exec->work = graph->work;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t /*stream*/) {
  return exec == nullptr ? Report(cudaErrorInvalidValue) : cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (exec == nullptr) return Report(cudaErrorInvalidValue);
  const auto begin = [work = exec->work] {
    return [work, next = size_t{0}]() mutable {
      while (next < work.size() && work[next].Advance()) ++next;
      return next == work.size();
    };
  };
  return pergola::emulator::Enqueue(stream, pergola::emulator::Work::Waiting(begin));
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (graph == nullptr || count == nullptr || nodes != nullptr) {
    return Report(cudaErrorInvalidValue);  // nodes have no handles here
  }
  *count = graph->work.size();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (graph == nullptr) return Report(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (exec == nullptr) return Report(cudaErrorInvalidValue);
  static_cast<void>(pergola::emulator::TakeDriverMemory(-exec->driver_bytes));
  delete exec;
  return cudaSuccess;
}
