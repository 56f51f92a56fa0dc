// Stages whose ranks sum through peer memory: the goldens, and a rank that is lost.
#include "worker/comm/device_links.h"

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/executor_fixture.h"
#include "tests/worker/golden.h"
#include "tests/worker/thread_ranks.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

ExecutorOptions F32Options() {
  ExecutorOptions options = TinyOptions();
  options.context_length = 128;
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  options.activation_dtype_set = true;
  return options;
}

class PeerStageTest : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  }
};

class PeerGoldenTest : public PeerStageTest, public testing::WithParamInterface<std::string> {};

TEST_P(PeerGoldenTest, LogitsAndTokensAreTheJudges) {
  const Golden golden = LoadGolden(GetParam());
  const auto checkpoint = Checkpoint::Open(golden.checkpoint);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExecutorGroup group(**checkpoint, 2, 1, F32Options(), 1, Device::kCuda, 1 << 20);
  const std::vector<Row> logits =
      LogitsInChunks(group, golden.prompt, static_cast<int64_t>(golden.prompt.size()));
  for (size_t row = 0; row < logits.size(); ++row) {
    for (size_t id = 0; id < logits[row].size(); ++id) {
      ASSERT_LE(std::abs(static_cast<double>(logits[row][id]) -
                         golden.logits[row * logits[row].size() + id]),
                golden.bound)
          << "row " << row << " id " << id;
    }
  }
  EXPECT_EQ(Generate(group, golden.prompt, static_cast<int>(golden.greedy.size())), golden.greedy);
}

INSTANTIATE_TEST_SUITE_P(Llama, PeerGoldenTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& test) { return TestName(test.param); });
INSTANTIATE_TEST_SUITE_P(Families, PeerGoldenTest, testing::ValuesIn(FamilyGoldenNames()),
                         [](const auto& test) { return TestName(test.param); });

TEST_F(PeerStageTest, MessagesAboveTheLimitGoAnotherWay) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = F32Options();
  options.context_length = 0;
  ExecutorGroup host(checkpoint, 2, 1, options, 1, Device::kCuda);
  // Two rows go through peers, a prompt of 20 does not.
  ExecutorGroup peers(checkpoint, 2, 1, options, 1, Device::kCuda, 2 * 4 * TinySpec().hidden);
  const std::vector<int32_t> prompt = RandomIds(20);
  EXPECT_EQ(Generate(peers, prompt, 6), Generate(host, prompt, 6));
}

TEST_F(PeerStageTest, PlannedMemoryIsWhatIsAllocated) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 2, 1, TinyOptions(), 1, Device::kCuda, 1 << 20);
  const ExecutorInfo& info = group.last().info();
  EXPECT_EQ(info.memory.link_bytes, PeerReducer::PlannedBytes(2, 1 << 20));
  EXPECT_GE(PeerReducer::PlannedBytes(2, 1 << 20), 2 << 20);
  EXPECT_EQ(info.memory.link_bytes, info.allocated.link_bytes);
}

// Rank 1 of the stage never executes.
TEST_F(PeerStageTest, AStepWithoutOneOfItsRanksNamesIt) {
  constexpr int kRanks = 2;
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ThreadStage stage(kRanks);
  std::unique_ptr<CpuStream> hosts[kRanks];
  std::unique_ptr<Stream> streams[kRanks];
  std::unique_ptr<DeviceLinks> links[kRanks];
  ThreadGather texts(kRanks);
  OnThreads(kRanks, [&](int rank) {
    hosts[rank] = CpuStream::Create(StreamOptions());
    streams[rank] = OpenCudaStream(0, *hosts[rank]).value();
    DeviceLinksOptions options;
    options.layout = MakeLayout(checkpoint.spec(), kRanks, 1, rank).value();
    options.peer_sum_bytes = 1 << 16;
    options.peer_wait_ms = 100;
    options.communicator = &stage.at(rank);
    links[rank] = DeviceLinks::Open(*streams[rank], options, [&](const std::string& text) {
                    return texts.Gather(rank, text);
                  }).value();
  });
  EXPECT_EQ(links[0]->numerics(), ", by peers to 65536 bytes");
  ExecutorOptions options = F32Options();
  options.context_length = 0;
  options.links = links[0].get();
  auto executor = StageExecutor::Load(checkpoint, MakeLayout(checkpoint.spec(), 2, 1, 0).value(),
                                      options, *streams[0], &stage.at(0), nullptr);
  ASSERT_TRUE(executor.ok()) << executor.status();
  BuiltPlan built(1);
  built.Start(0);
  built.Add(0, RandomIds(1), 0, Blocks(0, 1));
  std::vector<v1::EntryResult> results;
  const absl::Status status = (*executor)->Execute(built.plan, built.ids, nullptr, &results);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("CUDA device 0: sum over peer memory: rank 1 did not come within 100 ms"));
}

}  // namespace
}  // namespace pergola
