// Once a rank is loaded nothing is allocated, whatever its steps are.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/worker/executor_fixture.h"
#include "worker/model/step_graphs.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

// A step whose rows want everything that a request can ask for.
void Sample(ExecutorGroup& group, uint32_t slot) {
  BuiltPlan built(1);
  v1::SlotStart* start = built.Start(slot, 0.8F, 11);
  start->mutable_sampling()->set_top_k(5);
  start->mutable_sampling()->set_top_p(0.9F);
  v1::Entry* entry = built.Add(slot, RandomIds(20), 0, Blocks(slot * 8, 4));
  BuiltPlan::WantAll(entry);
  const auto results = group.Execute(built.plan, built.ids);
  EXPECT_EQ(results.size(), 1U);
}

// A block of slot 2 is copied, as a prompt that shares a prefix does.
void CopyABlock(ExecutorGroup& group) {
  BuiltPlan built(1);
  v1::BlockCopy* copy = built.plan.add_copies();
  copy->set_from_block(0);
  copy->set_to_block(9);
  built.Start(3);
  built.Add(3, RandomIds(5), 0, {9, 10});
  EXPECT_EQ(group.Execute(built.plan, built.ids).size(), 1U);
}

void RunStepsOfEveryKind(ExecutorGroup& group, int pp) {
  // Prompts in parts, then decode steps: of the same shape again and again, which are recorded.
  const auto ids = RandomIds(40);
  EXPECT_EQ(LogitsInChunks(group, ids, 7).size(), ids.size());
  EXPECT_EQ(Generate(group, RandomIds(9), 6).size(), 6U);
  EXPECT_EQ(Generate(group, RandomIds(9), 4, 0.7F, 5).size(), 4U);
  Sample(group, 0);
  CopyABlock(group);
  for (int stage = 0; stage < pp; ++stage) group.executor(stage, 0).ForgetSlots();
}

class SealedTest : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  }
};

TEST_F(SealedTest, StepsOfEveryKindAllocateNothing) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (const auto& [tp, pp] : {std::pair(1, 1), std::pair(3, 1), std::pair(1, 2)}) {
    for (const Device device : {Device::kCpu, Device::kCuda}) {
      SCOPED_TRACE(testing::Message() << tp << " x " << pp);
      ExecutorGroup group(checkpoint, tp, pp, TinyOptions(), 2, device);
      group.Seal();
      const int64_t allocations = emulator::AllocationCount();
      RunStepsOfEveryKind(group, tp * pp == 1 ? 1 : pp);
      EXPECT_EQ(emulator::AllocationCount(), allocations);
      // Steps of one rank were recorded, and the driver took memory for that.
      if (device == Device::kCuda && tp == 1) {
        EXPECT_GT(group.stream(0).RecordedBytes(), 0);
      }
      for (int rank = 0; rank < tp * pp; ++rank) {
        EXPECT_TRUE(group.stream(rank).Synchronize().ok());
      }
    }
  }
}

// A recording takes more than all of them may: the shapes after it run unrecorded, with the same
// tokens.
TEST_F(SealedTest, RecordingsTakeNoMoreThanTheirShareOfTheDevice) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup plain(checkpoint, 1, 1, TinyOptions(), 1, Device::kCuda);
  const auto want = Generate(plain, RandomIds(9), 6);
  const emulator::DeviceModel model = emulator::GetDeviceModel();
  emulator::DeviceModel greedy = model;
  greedy.graph_node_bytes = StepGraphs::kMostRecordedBytes / 8;
  greedy.memory_bytes = int64_t{1} << 42;
  emulator::SetDeviceModel(greedy);
  {
    ExecutorGroup group(checkpoint, 1, 1, TinyOptions(), 1, Device::kCuda);
    EXPECT_EQ(Generate(group, RandomIds(9), 6), want);
    const int64_t taken = group.stream(0).RecordedBytes();
    EXPECT_GT(taken, StepGraphs::kMostRecordedBytes);
    // Two rows are another shape.
    for (uint64_t step = 1; step <= 4; ++step) {
      BuiltPlan built(step);
      for (uint32_t slot = 0; slot < 2; ++slot) {
        if (step == 1) built.Start(slot);
        built.Add(slot, RandomIds(1, step), static_cast<int64_t>(step) - 1,
                  step == 1 ? Blocks(slot * 4, 2) : std::vector<uint32_t>());
      }
      EXPECT_EQ(group.Execute(built.plan, built.ids).size(), 2U);
    }
    EXPECT_EQ(group.stream(0).RecordedBytes(), taken);
  }
  emulator::SetDeviceModel(model);
}

TEST_F(SealedTest, AnAllocationIsAnErrorThatNamesItAndStays) {
  for (const Place place : {Place::kDevice, Place::kPinned}) {
    const auto host = CpuStream::Create({});
    auto stream = OpenCudaStream(0, *host);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const DeviceBuffer before(**stream, 100, place);
    EXPECT_NE(before.data(), nullptr);
    (*stream)->Seal();
    const DeviceBuffer after(**stream, 123, place);
    EXPECT_EQ(after.data(), nullptr);
    const absl::Status status = (*stream)->Synchronize();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(status.message(), std::string("CUDA device 0: 123 bytes of ") +
                                    (place == Place::kPinned ? "pinned" : "its") +
                                    " memory are wanted after the rank was loaded");
  }
}

TEST(SealedDeathTest, AnAllocationOnTheCpuIsAFailedCheck) {
  const auto stream = CpuStream::Create({});
  stream->Seal();
  EXPECT_DEATH(DeviceBuffer(*stream, 123), "123 bytes are to be allocated after");
}

TEST_F(SealedTest, PiecesFillAReservationToTheByteAndNoFurther) {
  const auto host = CpuStream::Create({});
  auto opened = OpenCudaStream(0, *host);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const int64_t before = stream.AvailableBytes();
  ASSERT_TRUE(stream.Reserve(1024).ok());
  {
    const DeviceBuffer a(stream, 1), b(stream, 256), c(stream, 257);
    EXPECT_EQ(b.data() - a.data(), 256);
    EXPECT_EQ(c.data() - b.data(), 256);
    EXPECT_EQ(stream.ReservedBytesLeft(), 0);
    // Another reservation beside pieces that are in use.
    ASSERT_TRUE(stream.Reserve(512).ok());
    const DeviceBuffer d(stream, 300);
    EXPECT_EQ(stream.ReservedBytesLeft(), 0);
    EXPECT_TRUE(stream.Synchronize().ok());
    EXPECT_EQ(stream.AvailableBytes(), before - 1024 - 512);
    const DeviceBuffer e(stream, 1);
    EXPECT_EQ(e.data(), nullptr);
    EXPECT_THAT(std::string(stream.Synchronize().message()),
                HasSubstr("CUDA device 0: 1 bytes are wanted, and 0 are left of the 512 that are "
                          "planned"));
  }
  EXPECT_EQ(stream.AvailableBytes(), before);
}

}  // namespace
}  // namespace pergola
