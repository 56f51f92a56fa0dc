#include "kernels/cuda/peer_reducer.h"

#include <utility>

#include "base/status.h"
#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/peer_memory.h"
#include "kernels/cuda/peer_reduce.h"

namespace pergola {
namespace {

class CudaPeerReducer final : public PeerReducer {
 public:
  CudaPeerReducer(Stream& stream, std::unique_ptr<PeerMemory> memory, int64_t most_bytes)
      : PeerReducer(most_bytes), stream_(stream), memory_(std::move(memory)) {
    WatchCudaStream(stream_, [this] { return memory_->status(); });
  }
  ~CudaPeerReducer() override { WatchCudaStream(stream_, nullptr); }

  void AllReduce(const Tensor& x) override {
    RunOnCuda(stream_, kOp,
              [&](const CudaContext& context) { PeerSumCuda(context, memory_->space(), x); });
  }
  void AllReduceNorm(const RmsNormArgs& args) override {
    RunOnCuda(stream_, kOp, [&](const CudaContext& context) {
      PeerSumNormCuda(context, memory_->space(), args);
    });
  }
  void AllReduceNorm(const LayerNormArgs& args) override {
    RunOnCuda(stream_, kOp, [&](const CudaContext& context) {
      PeerSumNormCuda(context, memory_->space(), args);
    });
  }
  void AllReduceAdd(const AddArgs& args) override {
    RunOnCuda(stream_, kOp,
              [&](const CudaContext& context) { PeerSumAddCuda(context, memory_->space(), args); });
  }

 private:
  static constexpr char kOp[] = "sum over peer memory";

  Stream& stream_;
  const std::unique_ptr<PeerMemory> memory_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerReducer>> PeerReducer::Open(Stream& stream,
                                                               const PeerOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<PeerMemory> memory, PeerMemory::Create(options));
  return std::unique_ptr<PeerReducer>(
      std::make_unique<CudaPeerReducer>(stream, std::move(memory), options.most_bytes));
}

}  // namespace pergola
