// The emulated NCCL: see include/nccl.h. Every operation is work that waits (stream.h): it copies
// chunk by chunk through the ranks' common memory and goes on when the others have.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/emulator/nccl_region.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {
namespace {

// NCCL takes memory for its buffers when a communicator is made, and when a way of communicating is
// first used. How much is arbitrary here.
constexpr size_t kInitBytes = 1 << 20;
constexpr size_t kFirstUseBytes = 1 << 18;

size_t TypeBytes(int type) {
  switch (type) {
    case ncclFloat32:
      return 4;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    default:
      return 1;
  }
}

template <typename T, float (*kDecode)(T), T (*kEncode)(float)>
void Sum(const NcclRegion& region, uint64_t round, int ranks, size_t bytes, uint8_t* to) {
  const size_t count = bytes / sizeof(T);
  for (size_t i = 0; i < count; ++i) {
    // A ring begins each part of a tensor at another rank.
    const auto first = static_cast<int>((round + i / 64) % ranks);
    T sum = {};
    for (int step = 0; step < ranks; ++step) {
      T value;
      const int rank = (first + step) % ranks;
      std::memcpy(&value, region.Chunk(round, rank) + i * sizeof(T), sizeof(T));
      sum = step == 0 ? value : kEncode(kDecode(sum) + kDecode(value));
    }
    std::memcpy(to + i * sizeof(T), &sum, sizeof(T));
  }
}

float SameFloat(float value) {
  return value;
}

}  // namespace
}  // namespace pergola::emulator

// NOLINTBEGIN(readability-identifier-naming): the names are NCCL's.

struct ncclComm {
  ncclComm(const std::string& name, int own_rank, int rank_count, const std::string& host,
           int device)
      : region(name, own_rank, rank_count, host, device), rank(own_rank), ranks(rank_count) {}
  pergola::emulator::NcclRegion region;
  const int rank;
  const int ranks;
  bool finalized = false;
  std::atomic<bool> aborted{false};
  std::atomic<int> callers{0};
  uint64_t round = 0;
  std::set<int> used;  // kinds
  std::vector<void*> memory;
  std::string last_error;
  // What graphs and streams hold of this communicator.
  std::shared_ptr<int> work = std::make_shared<int>(0);
};

namespace pergola::emulator {
namespace {

// One call on a communicator at a time.
class Caller {
 public:
  explicit Caller(ncclComm* comm) : comm_(comm) {
    PERGOLA_CHECK_MSG(comm_->callers.fetch_add(1) == 0, "two threads use a communicator at once");
  }
  ~Caller() { comm_->callers.fetch_sub(1); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

 private:
  ncclComm* const comm_;
};

// An operation of one rank, on its way. Does not own the communicator: whoever destroys that while
// work is left is told.
struct Transfer {
  ncclComm* comm = nullptr;
  std::shared_ptr<int> keeps;
  NcclCall call;
  const uint8_t* from = nullptr;
  uint8_t* to = nullptr;
  int peer = -1;
  size_t bytes = 0;  // of one rank
  size_t done = 0;
  bool posted = false;

  size_t Part() const { return std::min(NcclRegion::kChunkBytes, bytes - done); }
};

void CheckSame(const NcclCall& own, const NcclCall& other, int rank) {
  PERGOLA_CHECK_MSG(own == other, "this rank's " + own.ToString() + " meets rank " +
                                      std::to_string(rank) + "'s " + other.ToString());
}

void Combine(const Transfer& transfer) {
  const ncclComm& comm = *transfer.comm;
  const size_t part = transfer.Part();
  uint8_t* to = transfer.to + transfer.done;
  if (transfer.call.kind == NcclCall::kAllGather) {
    for (int rank = 0; rank < comm.ranks; ++rank) {
      std::memcpy(to + static_cast<size_t>(rank) * transfer.bytes,
                  comm.region.Chunk(comm.round, rank), part);
    }
  } else if (transfer.call.kind == NcclCall::kBroadcast) {
    std::memcpy(to, comm.region.Chunk(comm.round, transfer.call.root), part);
  } else if (transfer.call.type == ncclFloat32) {
    Sum<float, SameFloat, SameFloat>(comm.region, comm.round, comm.ranks, part, to);
  } else if (transfer.call.type == ncclFloat16) {
    Sum<__half, __half2float, __float2half>(comm.region, comm.round, comm.ranks, part, to);
  } else {
    Sum<__nv_bfloat16, __bfloat162float, __float2bfloat16>(comm.region, comm.round, comm.ranks,
                                                           part, to);
  }
}

// One round: false if it waits.
bool TryRound(Transfer* transfer) {
  ncclComm& comm = *transfer->comm;
  NcclRegion& region = comm.region;
  const uint64_t round = comm.round;
  if (!transfer->posted) {
    // The round before the last one used the same memory.
    for (int rank = 0; rank < comm.ranks; ++rank) {
      if (round >= 2 && region.cell(rank).read.load() < round - 1) return false;
    }
    if (transfer->from != nullptr) {
      std::memcpy(region.Chunk(round, comm.rank), transfer->from + transfer->done,
                  transfer->Part());
    }
    region.cell(comm.rank).calls[round % 2] = transfer->call;
    region.cell(comm.rank).written.store(round + 1);
    transfer->posted = true;
  }
  for (int rank = 0; rank < comm.ranks; ++rank) {
    if (region.cell(rank).written.load() < round + 1) return false;
  }
  for (int rank = 0; rank < comm.ranks; ++rank) {
    CheckSame(transfer->call, region.cell(rank).calls[round % 2], rank);
  }
  Combine(*transfer);
  region.cell(comm.rank).read.store(round + 1);
  ++comm.round;
  transfer->posted = false;
  return true;
}

bool TrySend(Transfer* transfer) {
  NcclRegion::Channel& channel =
      transfer->comm->region.channel(transfer->comm->rank, transfer->peer);
  if (!transfer->posted) {
    channel.call = transfer->call;
    std::memcpy(channel.bytes, transfer->from + transfer->done, transfer->Part());
    channel.sent.fetch_add(1);
    transfer->posted = true;
  }
  if (channel.received.load() != channel.sent.load()) return false;
  transfer->posted = false;
  return true;
}

bool TryReceive(Transfer* transfer) {
  NcclRegion::Channel& channel =
      transfer->comm->region.channel(transfer->peer, transfer->comm->rank);
  if (channel.sent.load() == channel.received.load()) return false;
  CheckSame(transfer->call, channel.call, transfer->peer);
  std::memcpy(transfer->to + transfer->done, channel.bytes, transfer->Part());
  channel.received.fetch_add(1);
  return true;
}

bool TryTransfer(Transfer* transfer) {
  while (transfer->done < transfer->bytes) {
    if (transfer->comm->aborted) return true;
    // A kernel that has lost a peer waits until it is aborted.
    if (transfer->comm->region.aborted().load() != 0) return false;
    const size_t part = transfer->Part();
    const bool went = transfer->call.kind != NcclCall::kSendReceive ? TryRound(transfer)
                      : transfer->from != nullptr                   ? TrySend(transfer)
                                                                    : TryReceive(transfer);
    if (!went) return false;
    transfer->done += part;
  }
  return true;
}

ncclResult_t Refuse(ncclComm* comm, const std::string& why) {
  comm->last_error = why;
  return ncclInvalidArgument;
}

// `from_bytes` and `to_bytes`: how much there must be of device memory.
ncclResult_t Start(Transfer transfer, size_t from_bytes, size_t to_bytes, cudaStream_t stream) {
  ncclComm* comm = transfer.comm;
  const Caller caller(comm);
  PERGOLA_CHECK_MSG(!comm->finalized, "a call on a finalized communicator");
  if (transfer.peer >= comm->ranks || transfer.peer == comm->rank) {
    return Refuse(comm, "peer " + std::to_string(transfer.peer) + " is none");
  }
  if ((from_bytes > 0 && !IsDeviceMemory(transfer.from, from_bytes)) ||
      (to_bytes > 0 && !IsDeviceMemory(transfer.to, to_bytes))) {
    return Refuse(comm, "a buffer does not lie on the device");
  }
  if (const int failure = TakeFailure(FailingCall::kNccl); failure != 0) {
    return static_cast<ncclResult_t>(failure);
  }
  if (comm->used.insert(transfer.call.kind).second) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, kFirstUseBytes) != cudaSuccess) return ncclUnhandledCudaError;
    comm->memory.push_back(memory);
  }
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  static_cast<void>(cudaStreamIsCapturing(stream, &capture));
  transfer.call.captured = capture == cudaStreamCaptureStatusNone ? 0 : 1;
  transfer.bytes = transfer.call.count * TypeBytes(transfer.call.type);
  transfer.keeps = comm->work;
  const auto begin = [transfer = std::move(transfer)] {
    return [on_its_way = transfer]() mutable { return TryTransfer(&on_its_way); };
  };
  return Enqueue(stream, Work::Waiting(begin)) == cudaSuccess ? ncclSuccess
                                                              : ncclUnhandledCudaError;
}

Transfer NewTransfer(ncclComm* comm, NcclCall::Kind kind, size_t count, ncclDataType_t type) {
  Transfer transfer;
  transfer.comm = comm;
  transfer.call.kind = kind;
  transfer.call.type = type;
  transfer.call.count = count;
  return transfer;
}

std::string HostId() {
  // NCCL's own variable, which lets ranks share a GPU.
  if (const char* id = std::getenv("NCCL_HOSTID"); id != nullptr) return id;
  char name[64] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

void Release(ncclComm* comm) {
  for (void* memory : comm->memory) static_cast<void>(cudaFree(memory));
  delete comm;
}

}  // namespace
}  // namespace pergola::emulator

using pergola::emulator::FailingCall;
using pergola::emulator::NcclCall;
using pergola::emulator::NewTransfer;
using pergola::emulator::Refuse;
using pergola::emulator::Start;
using pergola::emulator::Transfer;
using pergola::emulator::TypeBytes;

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  for (char& byte : id->internal) byte = static_cast<char>(random());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  using pergola::emulator::NcclRegion;
  if (ranks < 1 || ranks > NcclRegion::kMostRanks || rank < 0 || rank >= ranks) {
    return ncclInvalidArgument;
  }
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return ncclUnhandledCudaError;
  std::string name = "/pergola-nccl-";
  for (int i = 0; i < 16; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    name += kDigits[static_cast<uint8_t>(id.internal[i]) / 16];
    name += kDigits[static_cast<uint8_t>(id.internal[i]) % 16];
  }
  auto made = std::make_unique<ncclComm>(name, rank, ranks, pergola::emulator::HostId(), device);
  for (int other = 0; other < ranks; ++other) {
    const auto& cell = made->region.cell(other);
    const auto& own = made->region.cell(rank);
    if (other != rank && cell.device == own.device && std::strcmp(cell.host, own.host) == 0) {
      return ncclInvalidUsage;
    }
  }
  void* memory = nullptr;
  if (cudaMalloc(&memory, pergola::emulator::kInitBytes) != cudaSuccess) {
    return ncclUnhandledCudaError;
  }
  made->memory.push_back(memory);
  *comm = made.release();
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  PERGOLA_CHECK_MSG(comm->work.use_count() == 1,
                    "a communicator is finalized before its graphs and streams let it go");
  comm->finalized = true;
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  PERGOLA_CHECK_MSG(comm->work.use_count() == 1,
                    "a communicator is destroyed before its graphs and streams let it go");
  pergola::emulator::Release(comm);
  return ncclSuccess;
}

// What streams still have of it ends at its next turn, for which the communicator must live: it is
// kept.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->region.aborted().store(1);
  comm->aborted = true;
  if (comm->work.use_count() == 1) pergola::emulator::Release(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  *error = static_cast<ncclResult_t>(pergola::emulator::TakeFailure(FailingCall::kNcclAsync));
  if (comm->region.aborted().load() != 0) *error = ncclRemoteError;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t comm) {
  return comm == nullptr ? "" : comm->last_error.c_str();
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum || type == ncclInt8) return Refuse(comm, "only sums of floats are emulated");
  Transfer transfer = NewTransfer(comm, NcclCall::kAllReduce, count, type);
  transfer.from = static_cast<const uint8_t*>(from);
  transfer.to = static_cast<uint8_t*>(to);
  const size_t bytes = count * TypeBytes(type);
  return Start(std::move(transfer), bytes, bytes, stream);
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  Transfer transfer = NewTransfer(comm, NcclCall::kAllGather, count, type);
  transfer.from = static_cast<const uint8_t*>(from);
  transfer.to = static_cast<uint8_t*>(to);
  const size_t bytes = count * TypeBytes(type);
  const bool in_place = transfer.from == transfer.to + bytes * static_cast<size_t>(comm->rank);
  const bool apart = transfer.from + bytes <= transfer.to ||
                     transfer.to + bytes * static_cast<size_t>(comm->ranks) <= transfer.from;
  if (!in_place && !apart) return Refuse(comm, "an all-gather overlaps its input");
  return Start(std::move(transfer), bytes, bytes * static_cast<size_t>(comm->ranks), stream);
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  if (root < 0 || root >= comm->ranks) return Refuse(comm, "a broadcast from nobody");
  Transfer transfer = NewTransfer(comm, NcclCall::kBroadcast, count, type);
  transfer.call.root = root;
  // The others' input is not read.
  const bool sends = root == comm->rank;
  transfer.from = sends ? static_cast<const uint8_t*>(from) : nullptr;
  transfer.to = static_cast<uint8_t*>(to);
  const size_t bytes = count * TypeBytes(type);
  return Start(std::move(transfer), sends ? bytes : 0, bytes, stream);
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  if (peer < 0) return Refuse(comm, "a send to nobody");
  Transfer transfer = NewTransfer(comm, NcclCall::kSendReceive, count, type);
  transfer.from = static_cast<const uint8_t*>(from);
  transfer.peer = peer;
  return Start(std::move(transfer), count * TypeBytes(type), 0, stream);
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  if (peer < 0) return Refuse(comm, "a receive from nobody");
  Transfer transfer = NewTransfer(comm, NcclCall::kSendReceive, count, type);
  transfer.to = static_cast<uint8_t*>(to);
  transfer.peer = peer;
  return Start(std::move(transfer), 0, count * TypeBytes(type), stream);
}

// NOLINTEND(readability-identifier-naming)
