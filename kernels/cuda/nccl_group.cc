#include "kernels/cuda/nccl_group.h"

#include <nccl.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_handle.h"

namespace pergola {
namespace {

// Of a group that is being opened.
constexpr std::chrono::microseconds kPollInterval{200};

static_assert(sizeof(ncclUniqueId) == NCCL_UNIQUE_ID_BYTES);

// Communicators block: making one waits for all ranks, and an enqueued call returns when it is
// enqueued. The rank's watchdog bounds both, so nothing need be cancelled; a nonblocking
// communicator would cost a thread per call.
class NcclGroup final : public DeviceGroup {
 public:
  NcclGroup(Stream& stream, const NcclGroupOptions& options)
      : stream_(stream), handle_(CudaHandleOf(stream)), options_(options) {}
  ~NcclGroup() override;

  // Called once, before anything else.
  absl::Status Open();

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  absl::Status AllReduce(const Tensor& x) override;
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status Send(const void* data, int64_t bytes, int peer) override;
  absl::Status Receive(void* data, int64_t bytes, int peer) override;
  absl::Status Health() override;

 private:
  absl::Status Enqueue(const char* operation, const std::function<ncclResult_t()>& call);
  absl::Status Check(ncclResult_t result, const char* operation);
  void Abort();
  absl::Status Warm();
  absl::Status WarmWith(uint8_t* memory, int64_t bytes);

  Stream& stream_;
  const CudaHandle handle_;
  const NcclGroupOptions options_;
  ncclComm_t comm_ = nullptr;
  absl::Status status_;  // the first error
};

// A group in order has no work left when it goes (its recordings are gone), and leaves quietly.
NcclGroup::~NcclGroup() {
  if (comm_ == nullptr) return;
  const bool healthy = Health().ok() && stream_.Synchronize().ok();
  if (!healthy) Abort();
  if (comm_ == nullptr) return;
  static_cast<void>(ncclCommFinalize(comm_));
  static_cast<void>(ncclCommDestroy(comm_));
}

// After an error of the stream's nothing is enqueued: it is the one to be told.
absl::Status NcclGroup::Enqueue(const char* operation, const std::function<ncclResult_t()>& call) {
  RETURN_IF_ERROR(status_);
  ncclResult_t result = ncclSuccess;
  RunOnCuda(stream_, operation, [&](const CudaContext& context) {
    EndOverlap(context);  // what NCCL enqueues is no kernel of ours
    result = call();
  });
  return Check(result, operation);
}

absl::Status NcclGroup::Check(ncclResult_t result, const char* operation) {
  if (result == ncclSuccess || !status_.ok()) return status_;
  const char* detail = ncclGetLastError(comm_);
  const cudaError_t cuda = cudaPeekAtLastError();
  status_ = absl::InternalError(absl::StrCat(
      "CUDA device ", handle_.device, ": ", operation, " among ", options_.name, " (rank ",
      options_.rank, " of ", options_.size, "): NCCL says ", ncclGetErrorString(result),
      detail == nullptr || *detail == '\0' ? "" : absl::StrCat(": ", detail),
      result == ncclUnhandledCudaError ? absl::StrCat("; CUDA says ", CudaWords(cuda)) : ""));
  return status_;
}

// After an error the device may wait for a peer that is gone, and with it everyone who waits for
// the stream or frees memory: only this ends it.
void NcclGroup::Abort() {
  if (comm_ != nullptr) static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
}

absl::Status NcclGroup::Open() {
  if (options_.id.size() != NCCL_UNIQUE_ID_BYTES) {
    return absl::InvalidArgumentError(absl::StrCat("an NCCL id has ", options_.id.size(),
                                                   " bytes; it must have ", NCCL_UNIQUE_ID_BYTES));
  }
  ncclUniqueId id;
  std::memcpy(id.internal, options_.id.data(), options_.id.size());
  // The communicator is of the thread's current device.
  if (const cudaError_t error = cudaSetDevice(handle_.device); error != cudaSuccess) {
    return absl::InternalError(
        absl::StrCat("CUDA device ", handle_.device, ": selecting it: ", CudaWords(error)));
  }
  const ncclResult_t made = ncclCommInitRank(&comm_, options_.size, id, options_.rank);
  if (made == ncclInvalidUsage) {
    RETURN_IF_ERROR(Check(made, "making an NCCL communicator (has every rank its own GPU?)"));
  }
  RETURN_IF_ERROR(Check(made, "making an NCCL communicator"));
  return Warm();
}

absl::Status NcclGroup::Warm() {
  DeviceBuffer memory(stream_, options_.most_bytes);
  if (memory.data() == nullptr) return stream_.Synchronize();
  // Doubled, so that no way of communicating is left out; each is used from some size on.
  for (int64_t bytes = sizeof(float); bytes < options_.most_bytes; bytes *= 2) {
    static_cast<void>(WarmWith(memory.data(), bytes));
  }
  static_cast<void>(WarmWith(memory.data(), options_.most_bytes));
  // The first error stays, and Health ends what waits for the others.
  while (Health().ok() && !stream_.Idle()) std::this_thread::sleep_for(kPollInterval);
  RETURN_IF_ERROR(status_);
  return stream_.Synchronize();
}

absl::Status NcclGroup::WarmWith(uint8_t* memory, int64_t bytes) {
  if (options_.collectives) {
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      const int64_t values = bytes / DTypeBytes(dtype, 1);
      RETURN_IF_ERROR(AllReduce(Tensor(memory, dtype, {1, values})));
    }
    const int64_t share = bytes / options_.size;
    RETURN_IF_ERROR(AllGather(memory + share * options_.rank, share, memory));
    RETURN_IF_ERROR(Broadcast(memory, bytes, 0));
  }
  if (options_.hops && options_.rank > 0) {
    RETURN_IF_ERROR(Receive(memory, bytes, options_.rank - 1));
  }
  if (options_.hops && options_.rank + 1 < options_.size) {
    RETURN_IF_ERROR(Send(memory, bytes, options_.rank + 1));
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::AllReduce(const Tensor& x) {
  PERGOLA_CHECK(x.dtype() == DType::kF32 || x.dtype() == DType::kF16 || x.dtype() == DType::kBF16);
  const ncclDataType_t type = x.dtype() == DType::kF32   ? ncclFloat32
                              : x.dtype() == DType::kF16 ? ncclFloat16
                                                         : ncclBfloat16;
  return Enqueue("all-reduce", [&] {
    return ncclAllReduce(x.data(), x.data(), static_cast<size_t>(x.values()), type, ncclSum, comm_,
                         handle_.stream);
  });
}

absl::Status NcclGroup::AllGather(const void* in, int64_t bytes, void* out) {
  return Enqueue("all-gather", [&] {
    return ncclAllGather(in, out, static_cast<size_t>(bytes), ncclInt8, comm_, handle_.stream);
  });
}

absl::Status NcclGroup::Broadcast(void* data, int64_t bytes, int root) {
  return Enqueue("broadcast", [&] {
    return ncclBroadcast(data, data, static_cast<size_t>(bytes), ncclInt8, root, comm_,
                         handle_.stream);
  });
}

absl::Status NcclGroup::Send(const void* data, int64_t bytes, int peer) {
  return Enqueue("send", [&] {
    return ncclSend(data, static_cast<size_t>(bytes), ncclInt8, peer, comm_, handle_.stream);
  });
}

absl::Status NcclGroup::Receive(void* data, int64_t bytes, int peer) {
  return Enqueue("receive", [&] {
    return ncclRecv(data, static_cast<size_t>(bytes), ncclInt8, peer, comm_, handle_.stream);
  });
}

absl::Status NcclGroup::Health() {
  if (status_.ok()) {
    ncclResult_t error = ncclSuccess;
    static_cast<void>(Check(ncclCommGetAsyncError(comm_, &error), "asking for errors"));
    static_cast<void>(Check(error, "communication"));
  }
  if (!status_.ok()) Abort();
  return status_;
}

}  // namespace

absl::StatusOr<std::string> NcclDeviceId(Stream& stream) {
  cudaDeviceProp properties = {};
  const int device = CudaHandleOf(stream).device;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    return absl::InternalError(
        absl::StrCat("CUDA device ", device, ": reading its properties: ", CudaWords(error)));
  }
  return absl::StrCat("GPU ", absl::Hex(properties.pciDomainID), ":",
                      absl::Hex(properties.pciBusID, absl::kZeroPad2), ":",
                      absl::Hex(properties.pciDeviceID, absl::kZeroPad2));
}

absl::StatusOr<std::string> NewNcclId() {
  ncclUniqueId id;
  if (const ncclResult_t made = ncclGetUniqueId(&id); made != ncclSuccess) {
    return absl::InternalError(
        absl::StrCat("NCCL gives no id for a group: ", ncclGetErrorString(made)));
  }
  return std::string(id.internal, sizeof(id.internal));
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> OpenNcclGroup(Stream& stream,
                                                           const NcclGroupOptions& options) {
  auto group = std::make_unique<NcclGroup>(stream, options);
  RETURN_IF_ERROR(group->Open());
  return std::unique_ptr<DeviceGroup>(std::move(group));
}

}  // namespace pergola
