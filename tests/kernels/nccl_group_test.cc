// DeviceGroup over NCCL: on as many GPUs as there are ranks, or on the emulator, whose NCCL checks
// that the ranks make the same calls.
#include "kernels/cuda/nccl_group.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/decoder_ops.h"

namespace pergola {
namespace {

using testing::HasSubstr;

constexpr int kDevices = 4;
constexpr int64_t kMostBytes = 1 << 18;

struct TestRank {
  int rank = 0;
  std::unique_ptr<CpuStream> host;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<DeviceGroup> group;
};

class NcclGroupTest : public testing::Test {
 protected:
  // As many devices as ranks, where devices are emulated.
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
    emulator::DeviceModel model = model_;
    model.count = kDevices;
    emulator::SetDeviceModel(model);
  }
  void TearDown() override { emulator::SetDeviceModel(model_); }

  static absl::Status Open(const std::string& id, int ranks, int device, TestRank* rank) {
    rank->host = CpuStream::Create({});
    auto stream = OpenCudaStream(device, *rank->host);
    if (!stream.ok()) return stream.status();
    rank->stream = *std::move(stream);
    NcclGroupOptions options;
    options.id = id;
    options.name = "the test's ranks";
    options.rank = rank->rank;
    options.size = ranks;
    options.most_bytes = kMostBytes;
    options.collectives = options.hops = true;
    auto group = OpenNcclGroup(*rank->stream, options);
    if (!group.ok()) return group.status();
    rank->group = *std::move(group);
    return absl::OkStatus();
  }

  // Runs body(rank) for each rank of a new group on a thread and a device of its own.
  static void OnRanks(int ranks, const std::function<void(TestRank&)>& body) {
    if (CudaDeviceCount() < ranks) GTEST_SKIP() << "there are no " << ranks << " CUDA devices";
    const auto id = NewNcclId();
    ASSERT_TRUE(id.ok()) << id.status();
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] {
        TestRank rank;
        rank.rank = r;
        const absl::Status opened = Open(*id, ranks, r, &rank);
        ASSERT_TRUE(opened.ok()) << opened;
        body(rank);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const emulator::DeviceModel model_ = emulator::GetDeviceModel();
};

// Small whole numbers, whose sums are exact in every type and order.
float Value(int rank, int64_t i) {
  return static_cast<float>((i * 7 + rank * 3) % 11);
}

std::vector<float> Download(Stream& stream, const Tensor& x) {
  DeviceBuffer wide(stream, x.values() * 4);
  const Tensor y(wide.data(), DType::kF32, {1, x.values()});
  CopyRows(stream, CopyRowsArgs{Tensor(x.data(), x.dtype(), {1, x.values()}), nullptr, y});
  std::vector<float> values(x.values());
  stream.CopyToHost(values.data(), wide.data(), wide.size());
  const absl::Status status = stream.Synchronize();
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

void Upload(Stream& stream, int rank, const Tensor& x) {
  std::vector<float> values(x.values());
  for (int64_t i = 0; i < x.values(); ++i) values[i] = Value(rank, i);
  DeviceBuffer wide(stream, x.values() * 4);
  stream.CopyToDevice(wide.data(), values.data(), wide.size());
  CopyRows(stream, CopyRowsArgs{Tensor(wide.data(), DType::kF32, {1, x.values()}), nullptr,
                                Tensor(x.data(), x.dtype(), {1, x.values()})});
  const absl::Status status = stream.Synchronize();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(NcclGroupTest, AllReduceIsTheSumOnEveryRank) {
  for (const int ranks : {2, 3}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const int64_t count : {1, 77, 30000}) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << count << " values");
        OnRanks(ranks, [&](TestRank& rank) {
          DeviceBuffer buffer(*rank.stream, DTypeBytes(dtype, count));
          const Tensor x(buffer.data(), dtype, {1, count});
          Upload(*rank.stream, rank.rank, x);
          const absl::Status status = rank.group->AllReduce(x);
          ASSERT_TRUE(status.ok()) << status;
          const std::vector<float> sum = Download(*rank.stream, x);
          for (int64_t i = 0; i < count; ++i) {
            float want = 0;
            for (int r = 0; r < ranks; ++r) want += Value(r, i);
            ASSERT_EQ(sum[i], want) << i;
          }
        });
      }
    }
  }
}

TEST_F(NcclGroupTest, AllGatherPutsTheRanksPartsInOrder) {
  constexpr int64_t kPart = 10001;
  OnRanks(3, [&](TestRank& rank) {
    DeviceBuffer buffer(*rank.stream, 3 * kPart * 4);
    float* all = reinterpret_cast<float*>(buffer.data());
    float* own = all + rank.rank * kPart;
    Upload(*rank.stream, rank.rank, Tensor(own, DType::kF32, {1, kPart}));
    const absl::Status status = rank.group->AllGather(own, kPart * 4, all);
    ASSERT_TRUE(status.ok()) << status;
    const auto values = Download(*rank.stream, Tensor(all, DType::kF32, {1, 3 * kPart}));
    for (int64_t i = 0; i < 3 * kPart; ++i) {
      ASSERT_EQ(values[i], Value(static_cast<int>(i / kPart), i % kPart)) << i;
    }
  });
}

TEST_F(NcclGroupTest, ABroadcastIsWhatItsRootHas) {
  constexpr int64_t kCount = 10001;
  OnRanks(3, [&](TestRank& rank) {
    DeviceBuffer buffer(*rank.stream, kCount * 4);
    const Tensor x(buffer.data(), DType::kF32, {1, kCount});
    for (const int root : {0, 2}) {
      Upload(*rank.stream, rank.rank, x);
      const absl::Status status = rank.group->Broadcast(buffer.data(), kCount * 4, root);
      ASSERT_TRUE(status.ok()) << status;
      const auto values = Download(*rank.stream, x);
      for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(values[i], Value(root, i)) << i;
    }
  });
}

TEST_F(NcclGroupTest, WhatIsSentArrivesInOrder) {
  constexpr int64_t kCount = 20000;
  OnRanks(2, [&](TestRank& rank) {
    DeviceBuffer buffer(*rank.stream, 2 * kCount * 4);
    for (int part = 0; part < 2; ++part) {
      const Tensor x(buffer.data() + part * kCount * 4, DType::kF32, {1, kCount});
      if (rank.rank == 0) Upload(*rank.stream, part, x);
      const absl::Status status = rank.rank == 0 ? rank.group->Send(x.data(), kCount * 4, 1)
                                                 : rank.group->Receive(x.data(), kCount * 4, 0);
      ASSERT_TRUE(status.ok()) << status;
    }
    ASSERT_TRUE(rank.stream->Synchronize().ok());
    if (rank.rank == 0) return;
    for (int part = 0; part < 2; ++part) {
      const auto values = Download(
          *rank.stream, Tensor(buffer.data() + part * kCount * 4, DType::kF32, {1, kCount}));
      for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(values[i], Value(part, i)) << i;
    }
  });
}

// x = x + the sum of x, twice.
TEST_F(NcclGroupTest, RecordedCollectivesRunAtEachReplay) {
  constexpr int64_t kCount = 5000;
  OnRanks(2, [&](TestRank& rank) {
    Stream& stream = *rank.stream;
    DeviceBuffer buffer(stream, kCount * 4), sum(stream, kCount * 4);
    const Tensor x(buffer.data(), DType::kF32, {1, kCount});
    const Tensor y(sum.data(), DType::kF32, {1, kCount});
    Upload(stream, rank.rank, x);
    stream.BeginRecording();
    CopyRows(stream, CopyRowsArgs{x, nullptr, y});
    const absl::Status status = rank.group->AllReduce(y);
    Add(stream, AddArgs{x, y});
    const auto recording = stream.EndRecording();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(recording.ok()) << recording.status();
    stream.Replay(**recording);
    stream.Replay(**recording);
    const auto values = Download(stream, x);
    for (int64_t i = 0; i < kCount; ++i) {
      const float a = Value(rank.rank, i), b = Value(1 - rank.rank, i);
      const float a1 = a + (a + b), b1 = b + (a + b);
      ASSERT_EQ(values[i], a1 + (a1 + b1)) << i;
    }
  });
}

TEST_F(NcclGroupTest, CollectivesKeepTheOrderOfTheirStream) {
  constexpr int64_t kCount = 20000;
  // Nothing is done on the emulator before it is waited for.
  emulator::SetDeferred(true);
  OnRanks(2, [](TestRank& rank) {
    Stream& stream = *rank.stream;
    DeviceBuffer buffer(stream, kCount * 4);
    const Tensor x(buffer.data(), DType::kF32, {1, kCount});
    Upload(stream, rank.rank, x);
    for (int times = 0; times < 3; ++times) {
      ASSERT_TRUE(rank.group->AllReduce(x).ok());
      Add(stream, AddArgs{x, x});
    }
    const auto values = Download(stream, x);
    for (int64_t i = 0; i < kCount; ++i) {
      // Each time all have the sum, and then twice that.
      ASSERT_EQ(values[i], (Value(0, i) + Value(1, i)) * 2 * 4 * 4) << i;
    }
  });
  emulator::SetDeferred(false);
}

// A device goes on when its peer has come, whatever its host does.
TEST_F(NcclGroupTest, ACollectiveEndsWithoutBeingAskedFor) {
  std::atomic<bool> seen{false};
  OnRanks(2, [&](TestRank& rank) {
    DeviceBuffer buffer(*rank.stream, 400);
    const Tensor x(buffer.data(), DType::kF32, {1, 100});
    Upload(*rank.stream, rank.rank, x);
    for (int times = 0; times < 3; ++times) ASSERT_TRUE(rank.group->AllReduce(x).ok());
    while (rank.rank == 0 && !seen) std::this_thread::yield();
    const auto values = Download(*rank.stream, x);
    seen = true;
    EXPECT_EQ(values[1], 4 * (Value(0, 1) + Value(1, 1)));
  });
}

// The host goes on while a collective waits for a peer.
TEST_F(NcclGroupTest, TheStreamIsNotIdleBeforeThePeerCame) {
  std::atomic<bool> seen{false};
  OnRanks(2, [&](TestRank& rank) {
    DeviceBuffer buffer(*rank.stream, 4);
    const Tensor x(buffer.data(), DType::kF32, {1, 1});
    while (rank.rank == 1 && !seen) std::this_thread::yield();
    ASSERT_TRUE(rank.group->AllReduce(x).ok());
    if (rank.rank == 0) {
      for (int i = 0; i < 100; ++i) ASSERT_FALSE(rank.stream->Idle());
      seen = true;
    }
    while (!rank.stream->Idle()) std::this_thread::yield();
    EXPECT_TRUE(rank.group->Health().ok());
  });
}

TEST_F(NcclGroupTest, RanksOnOneGpuAreRefused) {
  const auto id = NewNcclId();
  ASSERT_TRUE(id.ok()) << id.status();
  std::vector<absl::Status> opened(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      TestRank rank;
      rank.rank = r;
      opened[r] = Open(*id, 2, 0, &rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : opened) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("has every rank its own GPU?"));
  }
}

TEST_F(NcclGroupTest, RanksWhoseCallsDifferEndTheEmulatedProcess) {
  if (emulator::GetDeviceModel().count != kDevices) GTEST_SKIP() << "NCCL itself does not check";
  EXPECT_DEATH(OnRanks(2,
                       [](TestRank& rank) {
                         DeviceBuffer buffer(*rank.stream, 40);
                         static_cast<void>(rank.group->AllReduce(
                             Tensor(buffer.data(), DType::kF32, {1, 5 + rank.rank})));
                         static_cast<void>(rank.stream->Synchronize());
                       }),
               "all-reduce of [56] values of type 7 meets rank [01]'s all-reduce of [56] values");
}

TEST_F(NcclGroupTest, AnIdOfAnotherLengthIsRefused) {
  TestRank rank;
  EXPECT_THAT(std::string(Open("short", 1, 0, &rank).message()), HasSubstr("has 5 bytes"));
}

}  // namespace
}  // namespace pergola
