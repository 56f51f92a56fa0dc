// How GPUs of a group come to reach each other, and what happens when one is gone or late.
#include "worker/comm/device_links.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <nccl.h>

#include <atomic>

#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/watchdog.h"

namespace pergola {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class DeviceLinksTest : public testing::Test {
 protected:
  struct Rank {
    int number = 0;
    std::unique_ptr<CpuStream> host;
    std::unique_ptr<Stream> gpu;
    WaitBoard board;
    std::unique_ptr<DeviceLinks> links;
  };

  void SetUp() override { SetDevices(2); }
  void TearDown() override { emulator::SetDeviceModel(model_); }

  void SetDevices(int count) {
    emulator::DeviceModel model = model_;
    model.count = count;
    emulator::SetDeviceModel(model);
  }

  // Two ranks of one stage, or of two; devices[rank] -1: on the CPU.
  static absl::Status Open(int pp, Collectives choice, const std::vector<int>& devices,
                           ThreadGather* gather, Rank* rank) {
    rank->host = CpuStream::Create({});
    if (devices[rank->number] >= 0) {
      auto gpu = OpenCudaStream(devices[rank->number], *rank->host);
      if (!gpu.ok()) return gpu.status();
      rank->gpu = std::move(gpu).value();
    }
    DeviceLinksOptions options;
    options.layout.world_rank = rank->number;
    options.layout.pipeline_parallel = pp;
    options.layout.tensor_parallel = 2 / pp;
    options.layout.stage = pp == 2 ? rank->number : 0;
    options.layout.tp_rank = pp == 2 ? 0 : rank->number;
    options.choice = choice;
    options.host = "here";
    options.most_values = 5000;
    options.board = &rank->board;
    auto links = DeviceLinks::Open(
        rank->gpu != nullptr ? *rank->gpu : *rank->host, options,
        [&](const std::string& text) { return gather->Gather(rank->number, text); });
    if (!links.ok()) return links.status();
    rank->links = std::move(links).value();
    return absl::OkStatus();
  }

  static void OnRanks(int pp, Collectives choice, const std::vector<int>& devices,
                      const std::function<void(Rank&, const absl::Status&)>& body) {
    ThreadGather gather(2);
    OnThreads(2, [&](int number) {
      Rank rank;
      rank.number = number;
      const absl::Status opened = Open(pp, choice, devices, &gather, &rank);
      gather.Gather(number, "all are open, or not");
      body(rank, opened);
    });
  }

  const emulator::DeviceModel model_ = emulator::GetDeviceModel();
};

TEST_F(DeviceLinksTest, RanksWithGpusOfTheirOwnReachEachOther) {
  OnRanks(1, Collectives::kAuto, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    ASSERT_NE(rank.links->stage(), nullptr);
    EXPECT_EQ(rank.links->column(), nullptr);
    EXPECT_EQ(rank.links->numerics(), ", sums by nccl");
  });
  OnRanks(2, Collectives::kAuto, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    EXPECT_EQ(rank.links->stage(), nullptr);
    ASSERT_NE(rank.links->column(), nullptr);
    // A hop changes no bit.
    EXPECT_EQ(rank.links->numerics(), "");
  });
}

TEST_F(DeviceLinksTest, TheHostServesWhereNcclCannot) {
  const auto has_none = [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    EXPECT_EQ(rank.links, nullptr);
  };
  OnRanks(1, Collectives::kAuto, {1, 1}, has_none);
  OnRanks(1, Collectives::kAuto, {0, -1}, has_none);
  OnRanks(1, Collectives::kAuto, {-1, -1}, has_none);
  OnRanks(1, Collectives::kHost, {0, 1}, has_none);
}

TEST_F(DeviceLinksTest, WhatCannotBeIsRefusedOnEveryRank) {
  OnRanks(1, Collectives::kNccl, {0, -1}, [](Rank& /*rank*/, const absl::Status& opened) {
    EXPECT_EQ(opened.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(opened.message()),
                HasSubstr("--collectives is nccl; rank 1: it computes on the CPU"));
  });
  OnRanks(1, Collectives::kNccl, {1, 1}, [](Rank& /*rank*/, const absl::Status& opened) {
    EXPECT_THAT(std::string(opened.message()), HasSubstr("has every rank its own GPU?"));
  });
}

// All ways of communicating were used when the links were made.
TEST_F(DeviceLinksTest, NothingIsAllocatedAfterTheyAreOpen) {
  for (const int pp : {1, 2}) {
    OnRanks(pp, Collectives::kNccl, {0, 1}, [pp](Rank& rank, const absl::Status& opened) {
      ASSERT_TRUE(opened.ok()) << opened;
      EXPECT_GT(rank.links->bytes(), 0);
      const DeviceBuffer buffer(*rank.gpu, 5000 * 4);
      const int64_t available = rank.gpu->AvailableBytes();
      if (pp == 1) {
        const Tensor x(buffer.data(), DType::kF32, {1, 5000});
        EXPECT_TRUE(rank.links->stage()->AllReduce(x).ok());
        EXPECT_TRUE(
            rank.links->stage()->AllGather(buffer.data() + 4 * rank.number, 4, buffer.data()).ok());
      } else if (rank.number == 0) {
        EXPECT_TRUE(rank.links->column()->Send(buffer.data(), buffer.size(), 1).ok());
      } else {
        EXPECT_TRUE(rank.links->column()->Receive(buffer.data(), buffer.size(), 0).ok());
      }
      EXPECT_TRUE(rank.links->Synchronize(*rank.gpu, "step", 1).ok());
      EXPECT_EQ(rank.gpu->AvailableBytes(), available);
    });
  }
}

TEST_F(DeviceLinksTest, APeersFailureEndsTheWaitAndNamesDeviceAndRank) {
  OnRanks(1, Collectives::kNccl, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    const DeviceBuffer buffer(*rank.gpu, 400);
    if (rank.number == 1) {
      // Its error ends its communicator when it goes.
      const absl::Status misuse = rank.links->stage()->Send(buffer.data(), 4, 7);
      EXPECT_THAT(std::string(misuse.message()), HasSubstr("send among the ranks of stage 0"));
      return;
    }
    ASSERT_TRUE(rank.links->stage()->AllReduce(Tensor(buffer.data(), DType::kF32, {1, 100})).ok());
    const absl::Status status = rank.links->Synchronize(*rank.gpu, "GPU work of plan", 7);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("CUDA device 0"), HasSubstr("(rank 0 of 2)"),
                      HasSubstr("remote process exited")));
    // It stays.
    EXPECT_FALSE(rank.links->stage()->Health().ok());
    rank.links.reset();
    EXPECT_TRUE(rank.gpu->Synchronize().ok());
  });
}

// NCCL's calls only follow it.
TEST_F(DeviceLinksTest, AnErrorOfTheDeviceIsToldInItsOwnWords) {
  emulator::FailCall(emulator::FailingCall::kCopy, cudaErrorIllegalAddress, 0, 1);
  OnRanks(1, Collectives::kNccl, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    const DeviceBuffer buffer(*rank.gpu, 400);
    const Tensor x(buffer.data(), DType::kF32, {1, 100});
    const std::vector<float> values(100);
    rank.gpu->CopyToDevice(buffer.data(), values.data(), buffer.size());
    EXPECT_TRUE(rank.links->stage()->AllReduce(x).ok());
    const absl::Status status = rank.links->Synchronize(*rank.gpu, "GPU work of plan", 7);
    EXPECT_THAT(std::string(status.message()),
                rank.number == 1 ? HasSubstr("CUDA device 1: copying to it: an illegal memory "
                                             "access was encountered")
                                 : HasSubstr("CUDA device 0: communication among the ranks of "
                                             "stage 0 (rank 0 of 2): NCCL says remote process"));
  });
  emulator::FailCall(emulator::FailingCall::kCopy, cudaSuccess);
}

TEST_F(DeviceLinksTest, ARefusedCallOfNcclNamesDeviceOpAndRank) {
  OnRanks(1, Collectives::kNccl, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    const DeviceBuffer buffer(*rank.gpu, 400);
    const Tensor x(buffer.data(), DType::kF32, {1, 100});
    if (rank.number == 0) return;  // and its peer would wait for it
    emulator::FailCall(emulator::FailingCall::kNccl, ncclSystemError, 0, 1);
    EXPECT_EQ(rank.links->stage()->AllReduce(x).message(),
              "CUDA device 1: all-reduce among the ranks of stage 0 (rank 1 of 2): NCCL says "
              "unhandled system error");
    // It stays, also for other calls.
    EXPECT_FALSE(rank.links->stage()->Send(buffer.data(), 4, 0).ok());
    EXPECT_FALSE(rank.links->stage()->Health().ok());
  });
  OnRanks(1, Collectives::kNccl, {0, 1}, [](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    if (rank.number == 0) return;
    emulator::FailCall(emulator::FailingCall::kNcclAsync, ncclInternalError, 0, 1);
    const absl::Status status = rank.links->Synchronize(*rank.gpu, "GPU work of plan", 7);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("CUDA device 1: communication among the ranks of stage 0 (rank 1 of 2): "
                          "NCCL says internal error"));
  });
  emulator::FailCall(emulator::FailingCall::kNccl, ncclSuccess);
}

TEST_F(DeviceLinksTest, AStalledPeerIsTheWatchdogsToReport) {
  std::atomic<bool> reported{false};
  OnRanks(1, Collectives::kNccl, {0, 1}, [&](Rank& rank, const absl::Status& opened) {
    ASSERT_TRUE(opened.ok()) << opened;
    const DeviceBuffer buffer(*rank.gpu, 400);
    std::string overdue;
    std::unique_ptr<Watchdog> watchdog;
    if (rank.number == 0) {
      watchdog = std::make_unique<Watchdog>(rank.board, WatchdogOptions{50, 5},
                                            [&](const Wait& wait, int64_t waited_ms) {
                                              overdue = DescribeWait(wait, waited_ms);
                                              reported = true;
                                            });
    }
    while (rank.number == 1 && !reported) std::this_thread::yield();
    ASSERT_TRUE(rank.links->stage()->AllReduce(Tensor(buffer.data(), DType::kF32, {1, 100})).ok());
    EXPECT_TRUE(rank.links->Synchronize(*rank.gpu, "GPU work of plan", 7).ok());
    watchdog.reset();
    EXPECT_THAT(overdue, rank.number == 0 ? HasSubstr("GPU work of plan 7, for ") : HasSubstr(""));
  });
}

}  // namespace
}  // namespace pergola
