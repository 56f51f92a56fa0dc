// What a rank planned is what it allocated, to the byte, in every layout and dtype.
#include "model/memory_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
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

TEST(PlannedMemoryTest, IsWhatIsAllocatedInEveryWeightFormat) {
  for (const char* name : {"gqa_tied", "gguf_q4_0", "gpt2", "bloom", "gpt_bigcode_mqa"}) {
    const auto checkpoint = Checkpoint::Open(LoadGolden(name).checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const WeightFormat format : kWeightFormats) {
      if (!CheckOnCpu(format).ok()) continue;
      SCOPED_TRACE(testing::Message() << name << " in " << WeightFormatName(format));
      ExecutorOptions options = TinyOptions();
      options.weights = format;
      for (const Layout& layout : {Layout{1, 1}, Layout{3, 2}}) {
        ExpectPlannedIsAllocated(**checkpoint, layout.tp, layout.pp, options);
      }
    }
  }
}

TEST(PlannedMemoryTest, KvIsF32OnlyWithF32Weights) {
  const auto kv = [](const char* name, WeightFormat format) {
    const auto checkpoint = Checkpoint::Open(LoadGolden(name).checkpoint);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    ExecutorOptions options = TinyOptions();
    options.kv_dtype_set = false;
    options.weights = format;
    return ExecutorGroup(**checkpoint, 1, 1, options).last().info().dtypes;
  };
  EXPECT_EQ(kv("mha", WeightFormat::kAuto), "f32 weights, f32 kv");
  EXPECT_EQ(kv("mha", WeightFormat::kInt8), "f32+int8 weights, f16 kv");
  EXPECT_EQ(kv("mha", WeightFormat::kInt4), "f32+q4_1 weights, f16 kv");
  EXPECT_EQ(kv("mha", WeightFormat::kBF16), "bf16 weights, f16 kv");
  EXPECT_EQ(kv("gguf_q8_0", WeightFormat::kF32), "f32 weights, f32 kv");
}

// On a GPU: what the device gave, by its own account, is what the plan says.
class GpuMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
    auto stream = OpenCudaStream(0, *host_);
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = std::move(stream).value();
    const int64_t before = stream_->AvailableBytes();
    const DeviceBuffer byte(*stream_, 1);
    grain_ = before - stream_->AvailableBytes();
  }
  void ExpectPlannedIsTaken(const Checkpoint& checkpoint, const ExecutorOptions& options) {
    const int64_t before = stream_->AvailableBytes();
    auto loaded = StageExecutor::Load(checkpoint, *MakeLayout(checkpoint.spec(), 1, 1, 0), options,
                                      *stream_, nullptr, nullptr);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const ExecutorInfo& info = (*loaded)->info();
    // One allocation, which may be rounded up: to a byte by the emulator, to more by a GPU.
    const int64_t taken = before - stream_->AvailableBytes();
    EXPECT_GE(taken, info.memory.total());
    EXPECT_LT(taken, info.memory.total() + grain_);
    EXPECT_EQ(stream_->ReservedBytesLeft(), 0);
    EXPECT_EQ(info.allocated.weights(), info.memory.weights());
    EXPECT_EQ(info.allocated.kv_bytes(), info.memory.kv_bytes());
    EXPECT_EQ(info.allocated.decoder_bytes, info.memory.decoder_bytes);
    EXPECT_EQ(info.allocated.residual_bytes, info.memory.residual_bytes);
    EXPECT_EQ(info.allocated.table_bytes, info.memory.table_bytes);
    EXPECT_EQ(info.allocated.logit_bytes, info.memory.logit_bytes);
    EXPECT_EQ(info.allocated.peer_bytes, info.memory.peer_bytes);
    EXPECT_EQ(info.allocated.padding_bytes, info.memory.padding());
    EXPECT_EQ(info.allocated.total(), info.memory.total());
    // The step loop's rows are the host's too.
    const int64_t rows = (options.step_tokens * checkpoint.spec().hidden + 1) * 4;
    EXPECT_EQ(info.allocated.host_bytes + rows, info.memory.host_bytes);
    loaded->reset();
    EXPECT_EQ(stream_->AvailableBytes(), before);
  }

  const std::unique_ptr<CpuStream> host_ = CpuStream::Create({});
  std::unique_ptr<Stream> stream_;
  int64_t grain_ = 0;  // of the device's memory
};

TEST_F(GpuMemoryTest, PlannedIsTakenInEveryWeightFormat) {
  for (const char* name : {"gqa_tied", "gguf_q4_0", "gpt2", "bloom", "gpt_bigcode_mqa"}) {
    const auto checkpoint = Checkpoint::Open(LoadGolden(name).checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const WeightFormat format : kWeightFormats) {
      SCOPED_TRACE(testing::Message() << name << " in " << WeightFormatName(format));
      ExecutorOptions options = TinyOptions();
      options.weights = format;
      ExpectPlannedIsTaken(**checkpoint, options);
    }
  }
}

TEST_F(GpuMemoryTest, TheKvGetsWhatTheFractionLeavesAtMostWhatSlotsUse) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  const auto layout = *MakeLayout(checkpoint.spec(), 1, 1, 0);
  const auto load = [&] {
    return StageExecutor::Load(checkpoint, layout, options, *stream_, nullptr, nullptr);
  };
  const auto all = load();
  ASSERT_TRUE(all.ok()) << all.status();
  const ExecutorInfo info = (*all)->info();
  const int64_t per_sequence = (checkpoint.spec().context_length + 15) / 16;
  EXPECT_EQ(info.block_count, options.slot_count * per_sequence);
  // Half of that KV beside the rest.
  const int64_t budget = info.memory.fixed() + info.memory.kv_bytes() / 2;
  options.gpu_memory_fraction =
      static_cast<float>(static_cast<double>(budget) / static_cast<double>(stream_->TotalBytes()));
  const auto half = load();
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_LE((*half)->info().memory.total(), budget + info.memory.kv_bytes() / 50);
  EXPECT_NEAR((*half)->info().block_count, info.block_count / 2, info.block_count / 50 + 1);
  options.gpu_memory_fraction = 1e-6F;
  EXPECT_THAT(std::string(load().status().message()), HasSubstr("--gpu-memory-fraction 1e-06"));
}

TEST_F(GpuMemoryTest, TooLittleSaysWhatIsMissingAndWhatWouldHelp) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorOptions options = TinyOptions();
  const auto layout = *MakeLayout(checkpoint.spec(), 1, 1, 0);
  const auto message = [&] {
    const auto loaded =
        StageExecutor::Load(checkpoint, layout, options, *stream_, nullptr, nullptr);
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kResourceExhausted);
    return std::string(loaded.status().message());
  };
  options.gpu_memory_fraction = 1e-6F;
  EXPECT_THAT(message(), HasSubstr("with one block of KV cache a rank needs weights "));
  EXPECT_THAT(message(), HasSubstr(" too few; --gpu-memory-fraction above 0."));
  // More KV than the device has.
  options.gpu_memory_fraction = 0.9F;
  options.kv_bytes = 2 * stream_->TotalBytes();
  EXPECT_THAT(message(), HasSubstr(" bytes too few; --kv-mib "));
  EXPECT_THAT(message(), HasSubstr(" or less, or a smaller --gpu-memory-fraction, or "));
  // Nothing was taken.
  EXPECT_TRUE(stream_->Synchronize().ok());
}

// TinySpec has nine heads over three KV heads: two of three ranks of TP 4 share one.
TEST(PlannedMemoryTest, KvHeadsAreHeldWhereTheyAreNeededOnly) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto heads = [&](int tp) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    std::vector<int64_t> held;
    for (int rank = 0; rank < tp; ++rank) {
      const MemoryPlan& plan = group.executor(0, rank).info().memory;
      // K and V of three layers, 16 tokens, 8 values of four bytes.
      const int64_t head_bytes = 2 * 3 * 16 * 8 * 4;
      EXPECT_EQ(plan.block_bytes % head_bytes, 0);
      EXPECT_THAT(plan.ToString(), HasSubstr("KV "));
      held.push_back(plan.block_bytes / head_bytes);
    }
    return held;
  };
  EXPECT_EQ(heads(1), (std::vector<int64_t>{3}));
  EXPECT_EQ(heads(3), (std::vector<int64_t>{1, 1, 1}));
  // Heads 0 to 4 need KV heads 0 and 1, heads 5 to 8 need 1 and 2.
  EXPECT_EQ(heads(2), (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(heads(9), std::vector<int64_t>(9, 1));
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
  const auto stream = CpuStream::Create({});
  const auto executor =
      StageExecutor::Load(checkpoint, *layout, options, *stream, nullptr, nullptr);
  EXPECT_EQ(executor.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(executor.status().message()),
              HasSubstr("holds 3 blocks of 16 tokens (9216 bytes each); one sequence of the full "
                        "context of 49 tokens takes 4 blocks, 36864 bytes"));
}

}  // namespace
}  // namespace pergola
