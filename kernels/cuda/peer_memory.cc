#include "kernels/cuda/peer_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/context.h"

namespace pergola {
namespace {

// CUDA shares whole granules of this size: what else lay in one would be shared too.
constexpr int64_t kGranule = int64_t{2} << 20;
constexpr int64_t kStateBytes = 4096;

// Slices end at whole pieces of 16 bytes: of wide rows they are hardly more than a ranks-th.
int64_t SliceBytes(int ranks, int64_t most_bytes) {
  return (2 * most_bytes / ranks + 15) / 16 * 16;
}

int64_t BufferBytes(int ranks, int64_t most_bytes) {
  const int64_t bytes = kPeerFlagBytes + 2 * most_bytes + 2 * SliceBytes(ranks, most_bytes);
  return (bytes + kGranule - 1) / kGranule * kGranule;
}

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  static_cast<void>(cudaGetLastError());  // it is told here
  const std::string text = absl::StrCat("peer memory: ", what, ": ", CudaWords(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::FailedPreconditionError(text);
}

// Of the running system; "" where it does not say.
std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

// Ids of processes mean little across containers.
uint64_t ProcessToken() {
  static const uint64_t token = [] {
    std::random_device random;
    return (static_cast<uint64_t>(random()) << 32) | random();
  }();
  return token;
}

}  // namespace

// What a rank tells the others. Plain bytes.
struct PeerMemory::Card {
  uint64_t token;
  int32_t process;
  int32_t device;  // in the numbering of its process
  int32_t multiprocessors;
  int32_t exported;  // whether `handle` is valid
  char boot[40];
  char bus[24];
  char refusal[80];  // why it is not
  cudaIpcMemHandle_t handle;
  std::shared_ptr<Buffer>* buffer;  // for threads of its process, until all have opened it

  bool SameProcess(const Card& other) const {
    return token == other.token && process == other.process;
  }
  bool SameDevice(const Card& other) const {
    return std::strcmp(boot, other.boot) == 0 && std::strcmp(bus, other.bus) == 0;
  }
};

class PeerMemory::Buffer {
 public:
  explicit Buffer(void* data) : data_(static_cast<uint8_t*>(data)) {}
  ~Buffer() { static_cast<void>(cudaFree(data_)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* const data_;
};

PeerMemory::PeerMemory(const PeerOptions& options) : options_(options) {
  space_.wait_ns = static_cast<uint64_t>(options.wait_ms) * 1'000'000;
  space_.most_bytes = options.most_bytes;
  space_.slice_bytes = SliceBytes(options.size, options.most_bytes);
  space_.rank = options.rank;
  space_.ranks = options.size;
}

void PeerMemory::CloseOpened() {
  for (void*& opened : opened_) {
    if (opened != nullptr) static_cast<void>(cudaIpcCloseMemHandle(std::exchange(opened, nullptr)));
  }
}

absl::Status PeerMemory::Close() {
  CloseOpened();
  return Agree(absl::OkStatus());
}

PeerMemory::~PeerMemory() {
  CloseOpened();
  if (state_ != nullptr) static_cast<void>(cudaFree(state_));
  if (space_.report != nullptr) static_cast<void>(cudaFreeHost(space_.report));
}

absl::Status PeerMemory::Agree(const absl::Status& mine) const {
  struct Verdict {
    int32_t code;
    char text[252];
  };
  Verdict own = {static_cast<int32_t>(mine.code()), {}};
  const std::string text(mine.message());
  std::memcpy(own.text, text.data(), std::min(text.size(), sizeof(own.text) - 1));
  std::vector<Verdict> all(static_cast<size_t>(options_.size));
  RETURN_IF_ERROR(options_.gather(&own, sizeof(own), all.data()));
  for (int rank = 0; rank < options_.size; ++rank) {
    const Verdict& verdict = all[static_cast<size_t>(rank)];
    if (verdict.code == 0) continue;
    return absl::Status(static_cast<absl::StatusCode>(verdict.code),
                        absl::StrCat("rank ", options_.first_rank + rank, ": ", verdict.text));
  }
  return absl::OkStatus();
}

// Flags and epochs begin at zero, before another rank has the memory.
absl::Status PeerMemory::Allocate(int64_t bytes) {
  void* data = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(&data, static_cast<size_t>(bytes)),
                             absl::StrCat("allocating ", bytes, " bytes")));
  buffers_[options_.rank] = std::make_shared<Buffer>(data);
  space_.buffers[options_.rank] = static_cast<uint8_t*>(data);
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(&state_, kStateBytes), "allocating its state"));
  space_.epochs = static_cast<uint64_t*>(state_);
  space_.lost = space_.epochs + kMostPeerBlocks;
  void* report = nullptr;
  RETURN_IF_ERROR(
      CudaStatus(cudaHostAlloc(&report, sizeof(uint64_t), cudaHostAllocMapped), "pinned memory"));
  space_.report = static_cast<uint64_t*>(report);
  *space_.report = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemset(data, 0, static_cast<size_t>(bytes)), "clearing it"));
  RETURN_IF_ERROR(CudaStatus(cudaMemset(state_, 0, kStateBytes), "clearing its state"));
  return CudaStatus(cudaDeviceSynchronize(), "clearing it");
}

absl::Status PeerMemory::Describe(int64_t bytes, Card* card) {
  card->token = ProcessToken();
  card->process = getpid();
  RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&card->device), "the current device"));
  RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&card->multiprocessors, cudaDevAttrMultiProcessorCount, card->device),
      "the device's multiprocessors"));
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetPCIBusId(card->bus, sizeof(card->bus), card->device),
                             "the device's place on the bus"));
  std::strncpy(card->boot, BootId().c_str(), sizeof(card->boot) - 1);
  RETURN_IF_ERROR(Allocate(bytes));
  card->buffer = &buffers_[options_.rank];
  const cudaError_t exported = cudaIpcGetMemHandle(&card->handle, space_.buffers[options_.rank]);
  card->exported = exported == cudaSuccess ? 1 : 0;
  if (exported == cudaSuccess) return absl::OkStatus();
  static_cast<void>(cudaGetLastError());  // it matters to other processes only
  std::strncpy(card->refusal, cudaGetErrorString(exported), sizeof(card->refusal) - 1);
  return absl::OkStatus();
}

absl::Status PeerMemory::Open(const Card& own, const Card& other, int rank) {
  const std::string whose = absl::StrCat("rank ", options_.first_rank + rank, "'s ");
  if (std::strcmp(own.boot, other.boot) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(whose, "GPU is in another machine"));
  }
  if (own.SameDevice(other) && !own.SameProcess(other) && !options_.share_devices) {
    return absl::FailedPreconditionError(
        absl::StrCat(whose, "process uses GPU ", other.bus,
                     " too: kernels of two processes do not run at once"));
  }
  int device = -1;
  if (cudaDeviceGetByPCIBusId(&device, other.bus) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return absl::FailedPreconditionError(
        absl::StrCat(whose, "GPU ", other.bus, " is not visible to this process"));
  }
  if (device != own.device) {
    int reaches = 0;
    RETURN_IF_ERROR(CudaStatus(cudaDeviceCanAccessPeer(&reaches, own.device, device),
                               absl::StrCat("the path to ", whose, "GPU")));
    if (reaches == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("GPU ", own.bus, " does not reach ", whose, "GPU ", other.bus, " directly"));
    }
  }
  if (!own.SameProcess(other)) {
    if (other.exported == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(whose, "memory cannot be shared between processes: ", other.refusal));
    }
    RETURN_IF_ERROR(CudaStatus(
        cudaIpcOpenMemHandle(&opened_[rank], other.handle, cudaIpcMemLazyEnablePeerAccess),
        absl::StrCat("opening ", whose, "memory")));
    space_.buffers[rank] = static_cast<uint8_t*>(opened_[rank]);
    return absl::OkStatus();
  }
  if (device != own.device) {
    const cudaError_t enabled = cudaDeviceEnablePeerAccess(device, 0);
    if (enabled == cudaErrorPeerAccessAlreadyEnabled) {
      static_cast<void>(cudaGetLastError());
    } else {
      RETURN_IF_ERROR(CudaStatus(enabled, absl::StrCat("reaching ", whose, "GPU")));
    }
  }
  buffers_[rank] = *other.buffer;
  space_.buffers[rank] = buffers_[rank]->data();
  return absl::OkStatus();
}

// All blocks of a launch must be resident beside those of the other ranks on the same GPU; a
// multiprocessor holds one of peer_reduce.cu's.
absl::Status PeerMemory::OpenAll(const std::vector<Card>& cards) {
  space_.blocks = kMostPeerBlocks;
  for (int rank = 0; rank < options_.size; ++rank) {
    const Card& card = cards[static_cast<size_t>(rank)];
    const auto sharers = static_cast<int>(std::count_if(
        cards.begin(), cards.end(), [&](const Card& other) { return card.SameDevice(other); }));
    space_.blocks = std::min(space_.blocks, std::max(1, card.multiprocessors / sharers));
    if (rank == options_.rank) continue;
    RETURN_IF_ERROR(Open(cards[static_cast<size_t>(options_.rank)], card, rank));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PeerMemory>> PeerMemory::Create(const PeerOptions& options) {
  PERGOLA_CHECK(options.rank >= 0 && options.rank < options.size);
  PERGOLA_CHECK(options.most_bytes > 0 && options.most_bytes % 16 == 0);
  if (options.size > kMostPeers) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a stage of ", options.size, " ranks; at most ", kMostPeers, " share peer memory"));
  }
  std::unique_ptr<PeerMemory> memory(new PeerMemory(options));
  Card own = {};
  RETURN_IF_ERROR(
      memory->Agree(memory->Describe(BufferBytes(options.size, options.most_bytes), &own)));
  std::vector<Card> cards(static_cast<size_t>(options.size));
  RETURN_IF_ERROR(options.gather(&own, sizeof(own), cards.data()));
  RETURN_IF_ERROR(memory->Agree(memory->OpenAll(cards)));
  return memory;
}

absl::Status PeerMemory::status() const {
  const uint64_t reported = __atomic_load_n(space_.report, __ATOMIC_ACQUIRE);
  if (reported == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("sum over peer memory: rank ",
                                             options_.first_rank + static_cast<int>(reported) - 1,
                                             " did not come within ", options_.wait_ms, " ms"));
}

int64_t PeerReducer::PlannedBytes(int ranks, int64_t most_bytes) {
  return BufferBytes(ranks, most_bytes) + kStateBytes;
}

}  // namespace pergola
