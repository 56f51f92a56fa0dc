// What a rank planned is what it allocated, to the byte, in every layout and dtype.
#include "model/memory_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/executor_fixture.h"
#include "tests/worker/golden.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

void ExpectPlannedIsAllocated(const Checkpoint& checkpoint, int tp, int pp,
                              const ExecutorOptions& options) {
  SCOPED_TRACE(testing::Message() << "TP " << tp << " PP " << pp);
  ExecutorGroup group(checkpoint, tp, pp, options);
  for (int stage = 0; stage < pp; ++stage) {
    for (int tp_rank = 0; tp_rank < tp; ++tp_rank) {
      SCOPED_TRACE(testing::Message() << "stage " << stage << " tp_rank " << tp_rank);
      const ExecutorInfo& info = group.executor(stage, tp_rank).info();
      EXPECT_EQ(info.memory.weights(), info.allocated.weights());
      EXPECT_EQ(info.memory.kv_bytes(), info.allocated.kv_bytes());
      EXPECT_EQ(info.memory.decoder_bytes, info.allocated.decoder_bytes);
      EXPECT_EQ(info.memory.table_bytes, info.allocated.table_bytes);
      EXPECT_EQ(info.memory.logit_bytes, info.allocated.logit_bytes);
      EXPECT_EQ(info.memory.logit_bytes > 0, stage == pp - 1);
      EXPECT_EQ(info.memory.total(), info.allocated.total() + info.memory.residual_bytes);
      EXPECT_EQ(info.memory.peer_bytes, 0);
    }
  }
}

struct Layout {
  int tp, pp;
};
constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {3, 1}, {9, 1}, {1, 3}, {2, 2}, {4, 3}};

TEST(PlannedMemoryTest, IsWhatIsAllocatedInEveryLayout) {
  for (const bool tied : {false, true}) {
    ModelSpec spec = TinySpec();
    spec.tied_embeddings = tied;
    const MemoryCheckpoint checkpoint(spec, {});
    for (const Layout& layout : kLayouts) {
      ExpectPlannedIsAllocated(checkpoint, layout.tp, layout.pp, TinyOptions());
    }
  }
}

TEST(PlannedMemoryTest, IsWhatIsAllocatedForEveryFamily) {
  for (const std::string& name : FamilyGoldenNames()) {
    SCOPED_TRACE(name);
    const auto checkpoint = Checkpoint::Open(LoadGolden(name).checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const Layout& layout : {Layout{1, 1}, Layout{2, 1}, Layout{3, 3}}) {
      ExpectPlannedIsAllocated(**checkpoint, layout.tp, layout.pp, TinyOptions());
    }
  }
}

TEST(PlannedMemoryTest, IsWhatIsAllocatedWithBiases) {
  ModelSpec spec = TinySpec();
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = true;
  const MemoryCheckpoint checkpoint(spec, {});
  for (const Layout& layout : kLayouts) {
    ExpectPlannedIsAllocated(checkpoint, layout.tp, layout.pp, TinyOptions());
  }
}

TEST(PlannedMemoryTest, IsWhatIsAllocatedWhereDTypesAreMixedAndBlocksAreCut) {
  ModelSpec spec = TinySpec();
  MakeQuantisable(&spec);
  MemoryCheckpoint::Options options;
  // q and k share a matrix, v has its own; gate and up differ.
  options.dtype = [](Role role) {
    return role == Role::kValue || role == Role::kUp ? DType::kQ8_0 : DType::kQ4_1;
  };
  const MemoryCheckpoint checkpoint(spec, options);
  for (const Layout& layout : {Layout{1, 1}, Layout{3, 1}, Layout{2, 3}, Layout{12, 1}}) {
    ExpectPlannedIsAllocated(checkpoint, layout.tp, layout.pp, TinyOptions());
  }
}

TEST(PlannedMemoryTest, IsWhatIsAllocatedForEveryKvDTypeAndLimit) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t block_tokens : {16, 128}) {
      ExecutorOptions options;
      options.slot_count = 200;
      options.step_tokens = 70;
      options.block_tokens = block_tokens;
      options.kv_dtype = dtype;
      options.kv_dtype_set = true;
      ExpectPlannedIsAllocated(checkpoint, 2, 2, options);
    }
  }
}

TEST(PlannedMemoryTest, EveryRankServesTheBlocksOfTheRankThatHasFewest) {
  // Stages of two and one layers; of two ranks the one with five heads needs two KV heads.
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  options.kv_bytes = 60'000;
  ExecutorGroup group(checkpoint, 2, 2, options);
  int64_t largest = 0;
  for (int stage = 0; stage < 2; ++stage) {
    for (int tp_rank = 0; tp_rank < 2; ++tp_rank) {
      const ExecutorInfo& info = group.executor(stage, tp_rank).info();
      EXPECT_EQ(info.block_count, group.last().info().block_count);
      EXPECT_EQ(info.context_length, group.last().info().context_length);
      largest = std::max(largest, info.memory.block_bytes);
    }
  }
  EXPECT_EQ(group.last().info().block_count, 60'000 / largest);
}

TEST(PlannedMemoryTest, ContextIsShortenedToWhatTheKvHolds) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  options.block_count = 3;
  ExecutorGroup group(checkpoint, 1, 1, options);
  EXPECT_EQ(group.last().info().context_length, 3 * 16);
  BuiltPlan built;
  built.Start(0);
  built.Add(0, RandomIds(49), 0, Blocks(0, 4));
  EXPECT_THAT(std::string(group.last().Validate(built.plan).message()),
              HasSubstr("the context has 48 positions"));
}

TEST(PlannedMemoryTest, AContextAskedForThatTheKvAskedForDoesNotHoldIsRefused) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  options.kv_bytes = 3 * 3 * 2 * 3 * 16 * 8 * 4;
  options.context_length = 49;
  const auto layout = MakeLayout(checkpoint.spec(), 1, 1, 0);
  ASSERT_TRUE(layout.ok());
  const auto stream = Stream::Cpu({});
  const auto executor =
      StageExecutor::Load(checkpoint, *layout, options, *stream, nullptr, nullptr);
  EXPECT_EQ(executor.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(executor.status().message()),
              HasSubstr("holds 3 blocks of 16 tokens (9216 bytes each); one sequence of the full "
                        "context of 49 tokens takes 4 blocks, 36864 bytes"));
}

}  // namespace
}  // namespace pergola
