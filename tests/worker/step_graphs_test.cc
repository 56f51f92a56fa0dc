// Recorded decode steps on a device: the same tokens as steps that are not recorded.
#include "worker/model/step_graphs.h"

#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/worker/executor_fixture.h"

namespace pergola {
namespace {

TEST(StepGraphsTest, PaddingGivesFewShapesThatHoldTheStep) {
  std::vector<int64_t> shapes;
  for (int64_t rows = 1; rows <= 64; ++rows) {
    const int64_t padded = StepGraphs::PaddedRows(rows, 64);
    EXPECT_GE(padded, rows);
    EXPECT_LE(padded, 64);
    if (shapes.empty() || shapes.back() != padded) shapes.push_back(padded);
  }
  EXPECT_EQ(shapes, (std::vector<int64_t>{1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64}));
  // A step is never longer than a step may be.
  EXPECT_EQ(StepGraphs::PaddedRows(5, 6), 6);
  EXPECT_EQ(StepGraphs::PaddedContext(3, 100), 100);
  EXPECT_EQ(StepGraphs::PaddedContext(3, 4096), 512);
  EXPECT_EQ(StepGraphs::PaddedContext(513, 4096), 1024);
}

class RecordedStepsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  }
};

// Three sequences of different lengths decode together: three rows are padded to four.
TEST_F(RecordedStepsTest, EqualStepsThatAreNotRecorded) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  const auto run = [&](Device device, int tp) {
    ExecutorGroup group(checkpoint, tp, 1, options, 1, device);
    std::vector<std::vector<int32_t>> known;
    for (int slot = 0; slot < 3; ++slot) known.push_back(RandomIds(3 + 7 * slot, 5 + slot));
    std::vector<int64_t> computed(3, 0);
    for (uint64_t step = 1; step <= 8; ++step) {
      BuiltPlan built(step);
      for (uint32_t slot = 0; slot < 3; ++slot) {
        if (step == 1) built.Start(slot, 0, 0);
        built.Add(slot, {known[slot].begin() + computed[slot], known[slot].end()}, computed[slot],
                  step == 1 ? Blocks(slot * 4, 4) : std::vector<uint32_t>());
        computed[slot] = static_cast<int64_t>(known[slot].size());
      }
      const auto results = group.Execute(built.plan, built.ids);
      for (size_t slot = 0; slot < 3; ++slot) {
        EXPECT_EQ(results[slot].ids_size(), 1);
        known[slot].push_back(results[slot].ids(0));
      }
    }
    return known;
  };
  const auto want = run(Device::kCpu, 1);
  EXPECT_EQ(run(Device::kCuda, 1), want);
  // Each kernel begins before the one before it has run.
  emulator::SetOverlap(true);
  EXPECT_EQ(run(Device::kCuda, 1), want);
  emulator::SetOverlap(false);
  // Two ranks meet within a step and record nothing.
  EXPECT_EQ(run(Device::kCuda, 2), want);
}

}  // namespace
}  // namespace pergola
