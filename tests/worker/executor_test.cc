// What an executor does with a plan: copies, tables, masks, draws, limits, refusals.
#include "worker/step/stage_executor.h"

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sample.h"
#include "tests/worker/executor_fixture.h"

namespace pergola {
namespace {

TEST(ExecutorTest, MixedDtypesOfOneProjectionAreTheNaiveDecoders) {
  ModelSpec spec = TinySpec();
  MakeQuantisable(&spec);
  spec.qkv_bias = true;
  MemoryCheckpoint::Options mixed;
  mixed.dtype = [](Role role) {
    if (role == Role::kKey || role == Role::kUp) return DType::kQ8_0;
    if (role == Role::kValue || role == Role::kTokenEmbedding) return DType::kF16;
    return DType::kQ4_1;
  };
  mixed.gguf_rope_rows = true;
  const MemoryCheckpoint checkpoint(spec, mixed);
  ExecutorOptions options = TinyOptions();
  options.kv_dtype_set = true;
  const auto ids = RandomIds(40);
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, options);
    Expected(checkpoint, ids).Check(LogitsInChunks(group, ids, 40), 2);
  }
}

TEST(ExecutorTest, BlockCopiesCarryEveryLayerBeforeTheEntries) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(33);
  for (int pp : {1, 2}) {
    ExecutorGroup group(checkpoint, 2, pp, TinyOptions());
    const Row expected = LogitsInChunks(group, ids, 33).back();
    BuiltPlan first;
    first.Start(0);
    first.Add(0, {ids.begin(), ids.end() - 1}, 0, {0, 1});
    group.Execute(first.plan, first.ids);
    // The slot goes on in copies of its blocks; another slot overwrites the originals in the same
    // step.
    BuiltPlan second(2);
    for (uint32_t block : {0U, 1U}) {
      auto* copy = second.plan.add_copies();
      copy->set_from_block(block);
      copy->set_to_block(20 + block);
    }
    second.Start(3);
    second.Add(3, RandomIds(32, 99), 0, {0, 1});
    second.Add(0, {ids.back()}, 32, {20, 21, 5});
    group.KeepLogits(true);
    group.Execute(second.plan, second.ids);
    EXPECT_EQ(Copy(group.last().Logits(1)), expected) << pp << " stages";
  }
}

TEST(ExecutorTest, TheHeadRunsForTheRowsThatNeedItAlone) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(40);
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  group.KeepLogits(true);
  BuiltPlan first;
  first.Start(0);
  first.Add(0, {ids.begin(), ids.begin() + 20}, 0, {9, 4, 7})->clear_logits_at();
  group.Execute(first.plan, first.ids);
  EXPECT_DEATH(group.last().Logits(0), "CHECK failed");  // a part of a prompt needs none
  BuiltPlan second(2);
  second.Add(0, {ids.begin() + 20, ids.end()}, 20);
  group.Execute(second.plan, second.ids);
  EXPECT_EQ(group.last().Logits(0).size(), 97U);
  EXPECT_DEATH(group.last().Logits(1), "CHECK failed");  // its last row alone
}

TEST(ExecutorTest, BlockTableGrowsFromTheStatedIndex) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(40);
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  const Row expected = LogitsInChunks(group, ids, 40).back();
  BuiltPlan first;
  first.Start(0);
  first.Add(0, {ids.begin(), ids.begin() + 20}, 0, {9, 4});
  group.Execute(first.plan, first.ids);
  BuiltPlan second(2);
  second.Add(0, {ids.begin() + 20, ids.end()}, 20, {7})->set_block_table_from(2);
  group.KeepLogits(true);
  group.Execute(second.plan, second.ids);
  EXPECT_EQ(Copy(group.last().Logits(0)), expected);
}

TEST(ExecutorTest, MaskLimitsWhatIsDrawn) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(12);
  for (int tp : {1, 3}) {
    for (float temperature : {0.0F, 1.0F}) {
      ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
      const std::vector<int32_t> allowed = {11, 64, 96};
      std::string bitmap((97 + 7) / 8, '\0');
      for (int32_t id : allowed) bitmap[id / 8] |= static_cast<char>(1 << id % 8);
      BuiltPlan built;
      for (uint32_t slot : {0U, 1U, 2U}) {
        built.Start(slot, temperature, 5);
        v1::Entry* entry = built.Add(slot, ids, 0, {slot});
        if (slot == 1) entry->mutable_mask()->set_bitmap(bitmap);
        if (slot == 2) entry->mutable_mask()->mutable_ids()->Add(allowed.begin(), allowed.end());
      }
      const auto results = group.Execute(built.plan, built.ids);
      EXPECT_THAT(allowed, testing::Not(testing::Contains(results[0].ids(0))));
      EXPECT_THAT(allowed, testing::Contains(results[1].ids(0)));
      EXPECT_EQ(results[1].ids(0), results[2].ids(0));
    }
  }
}

TEST(ExecutorTest, DrawIsKeyedBySeedIndexAndThePositionOfTheNewToken) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    group.KeepLogits(true);
    BuiltPlan first;
    v1::SlotStart* start = first.Start(0, 2.0F, 1234567890123);
    start->set_index(6);
    start->mutable_sampling()->set_top_k(50);
    start->mutable_sampling()->set_top_p(0.95F);
    first.Add(0, RandomIds(10), 0, {0, 1});
    group.Execute(first.plan, first.ids);
    BuiltPlan second(2);
    BuiltPlan::WantAll(second.Add(0, RandomIds(20), 10));
    const auto results = group.Execute(second.plan, second.ids);
    ASSERT_EQ(results[0].ids_size(), 20);
    for (uint32_t i = 0; i < 20; ++i) {
      SampleRow row;
      row.logits = group.last().Logits(i).data();
      row.temperature = 2;
      row.top_k = 50;
      row.top_p = 0.95F;
      row.seed = 1234567890123;
      row.index = 6;
      row.position = 10 + i + 1;
      EXPECT_EQ(results[0].ids(i), SampleRef(row, 97)) << "row " << i;
    }
  }
}

TEST(ExecutorTest, MoreLogitRowsThanTheBufferAreDoneInTurns) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(100);
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());  // the buffer holds 64 rows
    for (float temperature : {0.0F, 0.9F}) {
      BuiltPlan built;
      built.Start(0, temperature, 3);
      BuiltPlan::WantAll(built.Add(0, ids, 0, Blocks(0, 7)));
      const auto whole = group.Execute(built.plan, built.ids);
      ASSERT_EQ(whole[0].ids_size(), 100);
      for (int64_t i = 0; i < 100; ++i) {
        BuiltPlan one(i + 1);
        if (i == 0) one.Start(1, temperature, 3);
        one.Add(1, {ids[i]}, i, i == 0 ? Blocks(8, 7) : std::vector<uint32_t>());
        ASSERT_EQ(group.Execute(one.plan, one.ids)[0].ids(0), whole[0].ids(i)) << "row " << i;
      }
    }
  }
}

TEST(ExecutorTest, GreedyChoiceIsTheSameWithAndWithoutGatheredLogits) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 3, 1, TinyOptions());
  const auto prompt = RandomIds(30);
  const auto exchanged = Generate(group, prompt, 20);
  group.KeepLogits(true);
  EXPECT_EQ(Generate(group, prompt, 20), exchanged);
}

TEST(ExecutorTest, LogitsThatOverflowGiveTheStatusNanAndNoTokens) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  // Finite weights whose products are not: +Inf and -Inf meet in the sums of the head.
  std::vector<uint8_t>& norm = checkpoint.Bytes(Role::kFinalNorm, -1);
  const float huge = std::numeric_limits<float>::max();
  for (size_t i = 0; i < norm.size(); i += 4) std::memcpy(&norm[i], &huge, 4);
  std::vector<uint8_t>& head = checkpoint.Bytes(Role::kLmHead, -1);
  for (size_t i = 0; i < head.size(); i += 4) {
    float value;
    std::memcpy(&value, &head[i], 4);
    value = value < 0 ? -1e30F : 1e30F;
    std::memcpy(&head[i], &value, 4);
  }
  for (int tp : {1, 2}) {
    for (float temperature : {0.0F, 1.0F}) {
      ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
      BuiltPlan built;
      built.Start(0, temperature);
      BuiltPlan::WantAll(built.Add(0, {1, 2, 3}, 0, {0}));
      const auto results = group.Execute(built.plan, built.ids);
      EXPECT_EQ(results[0].status(), v1::ENTRY_STATUS_NAN);
      EXPECT_EQ(results[0].ids_size(), 0);
    }
  }
}

TEST(ExecutorTest, NanLeftInABlockDoesNotReachItsNextOwner) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto layout = MakeLayout(checkpoint.spec(), 1, 2, 1);
  ASSERT_TRUE(layout.ok());
  StreamOptions stream_options;
  stream_options.workspace_bytes = 8 << 20;
  const auto stream = CpuStream::Create(stream_options);
  const auto run = [&](bool poison) {
    auto executor =
        StageExecutor::Load(checkpoint, *layout, TinyOptions(), *stream, nullptr, nullptr);
    EXPECT_TRUE(executor.ok()) << executor.status();
    std::vector<v1::EntryResult> results;
    if (poison) {
      std::vector<float> hidden(32 * 32, std::numeric_limits<float>::quiet_NaN());
      BuiltPlan built;
      built.Start(0);
      built.Add(0, RandomIds(32), 0, {3, 4});
      EXPECT_TRUE((*executor)->Execute(built.plan, built.ids, hidden.data(), &results).ok());
      EXPECT_EQ(results[0].status(), v1::ENTRY_STATUS_NAN);
      (*executor)->ForgetSlots();
    }
    std::vector<float> hidden(5 * 32);
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = std::sin(static_cast<float>(i));
    BuiltPlan built;
    built.Start(1);
    built.Add(1, RandomIds(5), 0, {4, 3});
    (*executor)->KeepLogits(true);
    EXPECT_TRUE((*executor)->Execute(built.plan, built.ids, hidden.data(), &results).ok());
    EXPECT_EQ(results[0].status(), v1::ENTRY_STATUS_OK);
    return Copy((*executor)->Logits(0));
  };
  EXPECT_EQ(run(true), run(false));
}

TEST(ExecutorTest, IdOutsideTheVocabularyEmbedsAsZeros) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    BuiltPlan first;
    first.Start(0);
    first.Start(1);
    first.Add(0, {4}, 0, {0});
    first.Add(1, {5}, 0, {1});
    group.Execute(first.plan, first.ids);
    // Slot 0 goes on with the token of an entry that had none; slot 1 must not notice.
    BuiltPlan second(2);
    v1::Entry* entry = second.Add(0, {}, 1);
    entry->clear_logits_at();
    entry->add_logits_at(0);
    entry->mutable_from()->set_plan_id(1);
    second.Add(1, {6}, 1);
    const auto results = group.Execute(second.plan, {-1, 6});
    EXPECT_EQ(results[1].status(), v1::ENTRY_STATUS_OK);
    EXPECT_EQ(results[1].ids_size(), 1);
  }
}

TEST(ExecutorTest, ProbeIsAnsweredWithoutEntries) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 2, 2, TinyOptions());
  EXPECT_TRUE(group.Execute(BuiltPlan().plan, {}).empty());
}

TEST(ExecutorTest, RowsAndIdsMustAgree) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  BuiltPlan built;
  built.Start(0);
  built.Add(0, {1, 2}, 0, {0});
  std::vector<float> hidden(64);
  std::vector<v1::EntryResult> results;
  const std::vector<int32_t> one_id = {1};
  const absl::Status status = group.last().Execute(built.plan, one_id, hidden.data(), &results);
  EXPECT_EQ(status.message(), "plan 1 has 2 rows but 1 ids");
}

TEST(ExecutorTest, ForgottenSlotsMustBeStartedAgain) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  BuiltPlan built;
  built.Start(0);
  built.Add(0, {1, 2}, 0, {0});
  const auto before = group.Execute(built.plan, built.ids);
  group.last().ForgetSlots();
  BuiltPlan next(2);
  next.Add(0, {3}, 2);
  EXPECT_THAT(std::string(group.last().Validate(next.plan).message()),
              testing::HasSubstr("slot is 0, which no plan has started"));
  EXPECT_EQ(group.Execute(built.plan, built.ids)[0].ids(0), before[0].ids(0));
}

TEST(ExecutorTest, LimitedBlocksAreRefusedAboveTheLimit) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  group.last().LimitBlocks(8);
  BuiltPlan built;
  built.Start(0);
  built.Add(0, {1}, 0, {8});
  EXPECT_THAT(std::string(group.last().Validate(built.plan).message()),
              testing::HasSubstr("block_ids[0] is 8; there are 8 blocks"));
}

TEST(ExecutorTest, InfoAddsUpToWhatTheOptionsAskFor) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  const ExecutorInfo& info = group.last().info();
  EXPECT_EQ(info.context_length, 128);
  EXPECT_EQ(info.block_count, 4 * 128 / 16);
  EXPECT_EQ(info.memory.kv_bytes(), 3 * 2 * 32 * (3 * 16 * 8 * 4));
  EXPECT_EQ(info.kv_dtype, DType::kF32);
  EXPECT_EQ(info.dtypes, "f32 weights, f32 kv");
  EXPECT_GT(info.memory.logit_bytes, 64 * 97 * 4);
}

TEST(ExecutorTest, KvIsF16UnlessAllWeightsAreF32) {
  MemoryCheckpoint::Options weights;
  weights.dtype = [](Role role) { return role == Role::kDown ? DType::kBF16 : DType::kF32; };
  const MemoryCheckpoint checkpoint(TinySpec(), weights);
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  EXPECT_EQ(group.last().info().dtypes, "bf16+f32 weights, f16 kv");
}

struct BadOption {
  std::function<void(ExecutorOptions*)> change;
  std::string message;
};

TEST(ExecutorTest, OptionsOutOfRangeAreRefusedByName) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const std::vector<BadOption> cases = {
      {[](ExecutorOptions* o) { o->slot_count = 0; }, "slot_count is 0; it must be 1 to 65536"},
      {[](ExecutorOptions* o) { o->block_tokens = 24; },
       "block_tokens is 24; it must be 16, 32, 64 or 128"},
      {[](ExecutorOptions* o) { o->step_tokens = -1; },
       "step_tokens is -1; it must be 1 to 1048576"},
      {[](ExecutorOptions* o) { o->context_length = 129; },
       "context_length is 129; it must be 0 (the model's) to 128"},
      {[](ExecutorOptions* o) { o->kv_bytes = -5; }, "kv_bytes is -5; it must be 0 or more"},
      {[](ExecutorOptions* o) { o->block_count = -5; }, "block_count is -5; it must be 0 or more"},
      {[](ExecutorOptions* o) {
         o->kv_dtype = DType::kQ8_0;
         o->kv_dtype_set = true;
       },
       "kv_dtype is q8_0; it must be f32, f16 or bf16"},
      {[](ExecutorOptions* o) { o->weights = WeightFormat::kFp8; },
       "--dtype fp8 is for GPUs; on the CPU eight bits a weight are --dtype int8"},
      {[](ExecutorOptions* o) {
         o->block_count = 7;
         o->context_length = 128;
       },
       "the KV cache holds 7 blocks of 16 tokens (9216 bytes each); one sequence of the full "
       "context of 128 tokens takes 8 blocks, 73728 bytes"},
      {[](ExecutorOptions* o) { o->kv_bytes = 9215; },
       "the KV cache holds 0 blocks of 16 tokens (9216 bytes each); one sequence of the full "
       "context of 128 tokens takes 8 blocks, 73728 bytes"},
  };
  const auto stream = CpuStream::Create(StreamOptions());
  const auto layout = MakeLayout(checkpoint.spec(), 1, 1, 0);
  ASSERT_TRUE(layout.ok());
  for (const BadOption& bad : cases) {
    ExecutorOptions options = TinyOptions();
    bad.change(&options);
    const auto executor =
        StageExecutor::Load(checkpoint, *layout, options, *stream, nullptr, nullptr);
    EXPECT_EQ(executor.status().message(), bad.message);
  }
}

// The demo model, where it is: finite logits, and the same ones again, on one rank and two.
TEST(SmolLm2ExecutorTest, LogitsAreFiniteAndTheSameTwice) {
  const char* home = std::getenv("HOME");
  const std::string path =
      std::string(home == nullptr ? "" : home) + "/.cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "the demo model is not at " << path;
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExecutorOptions options = TinyOptions();
  options.context_length = 128;
  for (int tp : {1, 2}) {
    ExecutorGroup group(**checkpoint, tp, 1, options);
    const auto ids = RandomIds(24, 3, (*checkpoint)->spec().vocabulary);
    const auto logits = LogitsInChunks(group, ids, 24);
    for (const Row& row : logits) {
      ASSERT_TRUE(std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); }));
    }
    EXPECT_EQ(LogitsInChunks(group, ids, 7), logits) << "TP " << tp;
  }
}

}  // namespace
}  // namespace pergola
