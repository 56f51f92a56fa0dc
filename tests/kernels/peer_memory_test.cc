// Peer memory where ranks are processes, and where GPUs do not reach each other.
#include "kernels/cuda/peer_memory.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/peer_reduce.h"
#include "tests/kernels/cuda/peer_ranks.h"

namespace pergola {
namespace {

using testing::HasSubstr;

constexpr int kProcesses = 2;
constexpr int kNoDevice = 77;  // exit code of a process that has none

// Gathers bytes among forked processes.
struct SharedGather {
  std::atomic<uint32_t> arrived{0};
  std::atomic<uint32_t> round{0};
  char parts[kProcesses][4096];

  void Meet() {
    const uint32_t now = round.load();
    if (arrived.fetch_add(1) + 1 == kProcesses) {
      arrived.store(0);
      round.fetch_add(1);
    }
    while (round.load() == now) std::this_thread::yield();
  }
  absl::Status Gather(int rank, const void* in, int64_t bytes, void* out) {
    PERGOLA_CHECK(bytes <= static_cast<int64_t>(sizeof(parts[0])));
    std::memcpy(parts[rank], in, static_cast<size_t>(bytes));
    Meet();
    for (int r = 0; r < kProcesses; ++r) {
      std::memcpy(static_cast<char*>(out) + r * bytes, parts[r], static_cast<size_t>(bytes));
    }
    Meet();
    return absl::OkStatus();
  }
};

// 0 if what the two processes sum is right.
int RunProcess(int rank, SharedGather* gather) {
  if (WhyNoCuda() != nullptr) return kNoDevice;
  PERGOLA_CUDA_CHECK(cudaSetDevice(DeviceOfRank(rank)));
  PeerOptions options;
  options.rank = rank;
  options.size = kProcesses;
  options.most_bytes = 16 << 10;
  options.wait_ms = 20'000;
  options.share_devices = true;
  options.gather = [=](const void* in, int64_t bytes, void* out) {
    return gather->Gather(rank, in, bytes, out);
  };
  auto memory = PeerMemory::Create(options);
  PERGOLA_CHECK_MSG(memory.ok(), std::string(memory.status().message()));
  const TestCudaContext context(1);
  constexpr int kValues = 3 * 200, kSteps = 20;
  bool right = true;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<float> own(kValues);
    for (size_t i = 0; i < own.size(); ++i) {
      own[i] = static_cast<float>(i + 1) * static_cast<float>(step + 10 * rank);
    }
    const DeviceArray<float> x(own);
    PeerSumCuda(context, (*memory)->space(), Tensor(x.data(), DType::kF32, {3, 200}),
                step % 2 == 0 ? PeerShots::kOne : PeerShots::kTwo);
    const std::vector<float> sum = x.Read();
    for (size_t i = 0; i < sum.size(); ++i) {
      right = right && sum[i] == static_cast<float>(i + 1) * static_cast<float>(2 * step + 10);
    }
  }
  const bool fine = right && (*memory)->status().ok();
  gather->Meet();  // nobody reads any more
  return fine ? 0 : 1;
}

// CUDA must not have been used before the fork: nothing here does in the parent.
TEST(PeerMemoryTest, ProcessesReachEachOthersMemory) {
  void* shared = mmap(nullptr, sizeof(SharedGather), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  auto* gather = new (shared) SharedGather();
  std::vector<pid_t> children;
  for (int rank = 0; rank < kProcesses; ++rank) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int code = 1;
      // A thread that has nothing of the parent's.
      std::thread([&] { code = RunProcess(rank, gather); }).join();
      _exit(code);
    }
    children.push_back(child);
  }
  bool no_device = false;
  for (const pid_t child : children) {
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    no_device = no_device || WEXITSTATUS(status) == kNoDevice;
    EXPECT_TRUE(no_device || WEXITSTATUS(status) == 0);
  }
  munmap(shared, sizeof(SharedGather));
  if (no_device) GTEST_SKIP() << "there is no CUDA device, or this process has used it";
}

class UnreachablePeersTest : public testing::Test {
 protected:
  void TearDown() override { emulator::SetDeviceModel({}); }
};

TEST_F(UnreachablePeersTest, AreRefusedWithTheSameWordsOnAllRanks) {
  emulator::DeviceModel model;
  model.count = 3;
  model.peers = false;
  emulator::SetDeviceModel(model);
  int devices = 0;
  int reaches = 1;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < 3 ||
      cudaDeviceCanAccessPeer(&reaches, 0, 1) != cudaSuccess || reaches != 0) {
    GTEST_SKIP() << "needs three GPUs that do not reach each other";
  }
  const PeerRanks ranks(3, 1 << 10);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(ranks.created(rank).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ranks.created(rank).message(), ranks.created(0).message());
  }
  EXPECT_THAT(std::string(ranks.created(0).message()),
              HasSubstr("rank 0: GPU 0000:01:00.0 does not reach rank 1's GPU 0000:02:00.0"));
}

TEST_F(UnreachablePeersTest, AStageOfMoreRanksThanPeersIsRefused) {
  PeerOptions options;
  options.size = kMostPeers + 1;
  options.most_bytes = 1 << 10;
  EXPECT_THAT(std::string(PeerMemory::Create(options).status().message()),
              HasSubstr("a stage of 9 ranks; at most 8 share peer memory"));
}

// One rank that cannot allocate keeps all from it, or the others would wait for it in every step.
TEST_F(UnreachablePeersTest, ARankWithoutMemoryIsNamedByAll) {
  if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  const PeerRanks ranks(2, int64_t{1} << 50);
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(ranks.created(rank).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(ranks.created(rank).message()),
                HasSubstr("rank 0: peer memory: allocating"));
  }
}

}  // namespace
}  // namespace pergola
