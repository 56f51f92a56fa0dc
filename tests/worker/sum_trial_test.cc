// The trial that decides which sums go through peer memory.
#include "worker/comm/sum_trial.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>

#include <functional>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/nccl_group.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/device_links.h"

namespace pergola {
namespace {

using testing::HasSubstr;

TEST(LargestFasterSumTest, IsTheLastSizeBeforeTheFirstThatIsNotFaster) {
  EXPECT_EQ(LargestFasterSum({}), 0);
  EXPECT_EQ(LargestFasterSum({{64, 1, 2}}), 0);
  EXPECT_EQ(LargestFasterSum({{64, 2, 1}, {256, 2, 1.5}}), 256);
  EXPECT_EQ(LargestFasterSum({{64, 2, 1}, {256, 2, 2}, {1024, 2, 1}}), 64);
}

// Does the op and adds nothing: a sum that is wrong on every rank but the only one.
class NoSum final : public PeerReducer {
 public:
  NoSum(Stream& stream, int64_t most_bytes) : PeerReducer(most_bytes), stream_(stream) {}
  void AllReduce(const Tensor& /*x*/) override {}
  void AllReduceNorm(const RmsNormArgs& args) override { RmsNorm(stream_, args); }
  void AllReduceNorm(const LayerNormArgs& args) override { LayerNorm(stream_, args); }
  void AllReduceAdd(const AddArgs& args) override { Add(stream_, args); }
  absl::Status status() const override { return lost; }
  absl::Status Close() override { return absl::OkStatus(); }

  absl::Status lost;

 private:
  Stream& stream_;
};

constexpr int kRanks = 2;
constexpr int64_t kHidden = 256, kRowBytes = kHidden * 4;

class SumTrialTest : public testing::Test {
 protected:
  struct Rank {
    int number = 0;
    std::unique_ptr<CpuStream> host;
    std::unique_ptr<Stream> gpu;
    std::unique_ptr<DeviceGroup> nccl;
    StageCommunicator* communicator = nullptr;
  };

  void SetUp() override {
    emulator::DeviceModel model = model_;
    model.count = kRanks;
    emulator::SetDeviceModel(model);
  }
  void TearDown() override { emulator::SetDeviceModel(model_); }

  void OnRanks(const std::function<void(Rank&)>& body) {
    const std::string id = NewNcclId().value();
    OnThreads(kRanks, [&](int number) {
      Rank rank;
      rank.number = number;
      rank.communicator = &stage_.at(number);
      rank.host = CpuStream::Create({});
      rank.gpu = OpenCudaStream(number, *rank.host).value();
      NcclGroupOptions options;
      options.id = id;
      options.name = "the ranks";
      options.rank = number;
      options.size = kRanks;
      options.most_bytes = 16 * kRowBytes;
      options.collectives = true;
      rank.nccl = OpenNcclGroup(*rank.gpu, options).value();
      body(rank);
    });
  }

  static PeerOptions PeersOf(Rank& rank, int64_t most_bytes) {
    PeerOptions options;
    options.rank = rank.number;
    options.size = kRanks;
    options.most_bytes = most_bytes;
    options.watched = false;
    options.gather = [&](const void* in, int64_t bytes, void* out) {
      return rank.communicator->AllGather(in, bytes, out);
    };
    return options;
  }
  static absl::StatusOr<std::vector<SumTime>> Try(Rank& rank, PeerReducer& peers) {
    return TrySums({*rank.gpu, *rank.nccl, peers, *rank.communicator, kHidden});
  }

  const emulator::DeviceModel model_ = emulator::GetDeviceModel();
  ThreadStage stage_{kRanks};
};

TEST_F(SumTrialTest, EveryRankHasTheSameTimes) {
  std::vector<SumTime> all[kRanks];
  OnRanks([&](Rank& rank) {
    auto peers = PeerReducer::Open(*rank.gpu, PeersOf(rank, 5 * kRowBytes));
    ASSERT_TRUE(peers.ok()) << peers.status();
    auto times = Try(rank, **peers);
    ASSERT_TRUE(times.ok()) << times.status();
    all[rank.number] = *times;
    EXPECT_TRUE((*peers)->Close().ok());
  });
  ASSERT_EQ(all[0].size(), 2);  // one row and four; sixteen are too many
  ASSERT_EQ(all[1].size(), 2);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(all[0][i].bytes, i == 0 ? kRowBytes : 4 * kRowBytes);
    EXPECT_EQ(all[0][i].bytes, all[1][i].bytes);
    EXPECT_GT(all[0][i].nccl_s, 0);
    EXPECT_GT(all[0][i].peers_s, 0);
    EXPECT_EQ(all[0][i].nccl_s, all[1][i].nccl_s);
    EXPECT_EQ(all[0][i].peers_s, all[1][i].peers_s);
  }
}

TEST_F(SumTrialTest, AWrongSumIsFoundBeforeItsTime) {
  OnRanks([&](Rank& rank) {
    NoSum peers(*rank.gpu, 4 * kRowBytes);
    const auto times = Try(rank, peers);
    EXPECT_EQ(times.status().code(), absl::StatusCode::kUnavailable) << times.status();
    EXPECT_THAT(std::string(times.status().message()),
                HasSubstr("rank 0 of the stage: its sum is wrong (here: value 0 is "));
    EXPECT_TRUE(rank.gpu->Synchronize().ok());
    EXPECT_TRUE(rank.nccl->Health().ok());
  });
}

TEST_F(SumTrialTest, ARankThatDoesNotComeIsNoErrorOfTheStream) {
  OnRanks([&](Rank& rank) {
    NoSum peers(*rank.gpu, 4 * kRowBytes);
    // Rank 1 waits in vain; what rank 0 adds is wrong too, which rank 1 hears.
    if (rank.number == 1) peers.lost = absl::UnavailableError("rank 0 did not come");
    const auto times = Try(rank, peers);
    EXPECT_EQ(times.status().code(), absl::StatusCode::kUnavailable) << times.status();
    EXPECT_TRUE(rank.gpu->Synchronize().ok());
  });
}

TEST_F(SumTrialTest, AnotherFailureIsTheRanksOwn) {
  OnRanks([&](Rank& rank) {
    NoSum peers(*rank.gpu, 4 * kRowBytes);
    // Whatever the others found.
    if (rank.number == 1) peers.lost = absl::InternalError("the device is gone");
    const auto times = Try(rank, peers);
    EXPECT_EQ(times.status().code(),
              rank.number == 1 ? absl::StatusCode::kInternal : absl::StatusCode::kAborted)
        << times.status();
  });
}

// It is known before the others wait for it in NCCL.
TEST_F(SumTrialTest, ARankThatCannotRecordEndsTheTrialOnAll) {
  emulator::FailCall(emulator::FailingCall::kInstantiate, cudaErrorUnknown, 0, 1);
  OnRanks([&](Rank& rank) {
    auto peers = PeerReducer::Open(*rank.gpu, PeersOf(rank, 4 * kRowBytes)).value();
    const auto times = Try(rank, *peers);
    EXPECT_EQ(times.status().code(),
              rank.number == 1 ? absl::StatusCode::kInternal : absl::StatusCode::kAborted)
        << times.status();
  });
  emulator::FailCall(emulator::FailingCall::kLaunch, 0);
}

TEST_F(SumTrialTest, NoRowFits) {
  OnRanks([&](Rank& rank) {
    NoSum peers(*rank.gpu, kRowBytes - 16);
    const auto times = Try(rank, peers);
    ASSERT_TRUE(times.ok()) << times.status();
    EXPECT_TRUE(times->empty());
  });
}

// What the links make of it: with NCCL there is a trial, without it nothing to compare with.
TEST_F(SumTrialTest, LinksThatTry) {
  for (const Collectives choice : {Collectives::kNccl, Collectives::kHost}) {
    ThreadGather texts(kRanks);
    ThreadStage stage(kRanks);
    OnThreads(kRanks, [&](int number) {
      const auto host = CpuStream::Create({});
      const auto gpu = OpenCudaStream(number, *host).value();
      DeviceLinksOptions options;
      options.layout.world_rank = options.layout.tp_rank = number;
      options.layout.tensor_parallel = kRanks;
      options.choice = choice;
      options.host = "here";
      options.hidden = kHidden;
      options.most_values = 4 * kHidden;
      options.peer_sum_bytes = kTriedPeerSum;
      options.communicator = &stage.at(number);
      auto links = DeviceLinks::Open(
          *gpu, options, [&](const std::string& text) { return texts.Gather(number, text); });
      ASSERT_TRUE(links.ok()) << links.status();
      if (choice == Collectives::kHost) {
        EXPECT_EQ(*links, nullptr);
      } else {
        // Alike however the trial ended.
        EXPECT_EQ((*links)->numerics(), ", sums by nccl, by peers where they are faster");
        if ((*links)->peers() != nullptr) {
          EXPECT_LE((*links)->peers()->most_bytes(), 4 * kRowBytes);
        }
      }
      texts.Gather(number, "both have looked");
    });
  }
}

}  // namespace
}  // namespace pergola
