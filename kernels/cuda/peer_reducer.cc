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
  CudaPeerReducer(Stream& stream, std::unique_ptr<PeerMemory> memory, const PeerOptions& options)
      : PeerReducer(options.most_bytes),
        stream_(stream),
        memory_(std::move(memory)),
        watched_(options.watched) {
    if (watched_) WatchCudaStream(stream_, [this] { return memory_->status(); });
  }
  ~CudaPeerReducer() override {
    if (watched_) WatchCudaStream(stream_, nullptr);
  }

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
  absl::Status status() const override { return memory_->status(); }
  absl::Status Close() override { return memory_->Close(); }

 private:
  static constexpr char kOp[] = "sum over peer memory";

  Stream& stream_;
  const std::unique_ptr<PeerMemory> memory_;
  const bool watched_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerReducer>> PeerReducer::Open(Stream& stream,
                                                               const PeerOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<PeerMemory> memory, PeerMemory::Create(options));
  return std::unique_ptr<PeerReducer>(
      std::make_unique<CudaPeerReducer>(stream, std::move(memory), options));
}

}  // namespace pergola
