#include "worker/comm/device_reducer.h"

#include "base/check.h"
#include "base/status.h"
#include "kernels/decoder_ops.h"

namespace pergola {
namespace {

constexpr int64_t kF32Bytes = sizeof(float);

void Norm(Stream& stream, const RmsNormArgs& args) {
  RmsNorm(stream, args);
}
void Norm(Stream& stream, const LayerNormArgs& args) {
  LayerNorm(stream, args);
}

}  // namespace

int64_t DeviceReducer::PlannedBytes(bool staged, int64_t most_values, DType activation) {
  return staged && activation != DType::kF32 ? most_values * kF32Bytes : 0;
}

DeviceReducer::DeviceReducer(Stream& stream, StageCommunicator* communicator, DeviceGroup* group,
                             int64_t most_values, DType activation)
    : stream_(stream), communicator_(communicator), group_(group) {
  const bool staged = stream.device() != Device::kCpu && group == nullptr &&
                      communicator != nullptr && communicator->size() > 1;
  if (staged) staged_ = DeviceBuffer(stream, most_values * kF32Bytes, Place::kPinned);
  wide_ = DeviceBuffer(stream, PlannedBytes(staged, most_values, activation));
}

// The same on every rank: it depends on the message's size alone.
bool DeviceReducer::ThroughPeers(const Tensor& part) const {
  return peers_ != nullptr && DTypeBytes(part.dtype(), part.values()) <= peers_->most_bytes();
}

absl::Status DeviceReducer::AllReduce(const Tensor& x) {
  if (ThroughPeers(x)) {
    peers_->AllReduce(x);
    return absl::OkStatus();
  }
  if (group_ != nullptr) return group_->AllReduce(x);
  if (communicator_ == nullptr) return absl::OkStatus();
  // Also with one rank: the communicator moves the group's messages on while the step runs.
  if (stream_.device() == Device::kCpu) return communicator_->AllReduce(x.f32(), x.values());
  if (communicator_->size() == 1) return communicator_->AllReduce(nullptr, 0);
  const int64_t bytes = x.values() * kF32Bytes;
  PERGOLA_CHECK(bytes <= staged_.size());
  auto* staged = reinterpret_cast<float*>(staged_.data());
  Tensor wide = x;
  if (x.dtype() != DType::kF32) {
    wide = Tensor(wide_.data(), DType::kF32, {x.dim(0), x.dim(1)});
    CopyRows(stream_, CopyRowsArgs{x, nullptr, wide});
  }
  stream_.CopyToHost(staged, wide.data(), bytes);
  RETURN_IF_ERROR(stream_.Synchronize());
  RETURN_IF_ERROR(communicator_->AllReduce(staged, x.values()));
  stream_.CopyToDevice(wide.data(), staged, bytes);
  if (x.dtype() != DType::kF32) CopyRows(stream_, CopyRowsArgs{wide, nullptr, x});
  // The staging memory is written again by the next call.
  return stream_.Synchronize();
}

template <typename Args>
absl::Status DeviceReducer::SumAndNorm(const Args& args, const MatmulArgs* product) {
  if (ThroughPeers(args.residual)) {
    peers_->AllReduceNorm(args);
    if (product != nullptr) Matmul(stream_, *product);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(AllReduce(args.residual));
  if (product != nullptr) {
    NormMatmul(stream_, args, *product);
  } else {
    Norm(stream_, args);
  }
  return absl::OkStatus();
}

absl::Status DeviceReducer::AllReduceNorm(const RmsNormArgs& args, const MatmulArgs* product) {
  return SumAndNorm(args, product);
}

absl::Status DeviceReducer::AllReduceNorm(const LayerNormArgs& args, const MatmulArgs* product) {
  return SumAndNorm(args, product);
}

absl::Status DeviceReducer::AllReduceAdd(const AddArgs& args) {
  if (ThroughPeers(args.y)) {
    peers_->AllReduceAdd(args);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(AllReduce(args.y));
  Add(stream_, args);
  return absl::OkStatus();
}

}  // namespace pergola
