// Tiny random models of many shapes, dtypes and layouts: against a naive decoder in double, against
// one rank, and against themselves under other chunks and batches.
#include <functional>
#include <string>
#include <tuple>

#include "tests/worker/executor_fixture.h"

namespace pergola {
namespace {

struct Variant {
  std::string name;
  std::function<void(ModelSpec*)> change;
  DType dtype = DType::kF32;
  bool gguf_rope_rows = false;
};

std::ostream& operator<<(std::ostream& out, const Variant& variant) {
  return out << variant.name;
}

std::vector<Variant> Variants() {
  const auto none = [](ModelSpec*) {};
  return {
      {"plain", none},
      {"tied", [](ModelSpec* s) { s->tied_embeddings = true; }},
      {"biased", [](ModelSpec* s) { s->qkv_bias = s->output_bias = s->mlp_bias = true; }},
      {"window", [](ModelSpec* s) { s->sliding_window = 5; }},
      {"every_head_its_own_kv", [](ModelSpec* s) { s->kv_heads = 9; }},
      {"one_kv_head", [](ModelSpec* s) { s->kv_heads = 1; }},
      {"bf16", none, DType::kBF16},
      {"f16_tied", [](ModelSpec* s) { s->tied_embeddings = true; }, DType::kF16},
      {"gguf_rows", [](ModelSpec* s) { s->qkv_bias = true; }, DType::kF32, true},
      {"q8_0", MakeQuantisable, DType::kQ8_0, true},
      {"q4_0", MakeQuantisable, DType::kQ4_0, true},
      {"q4_1", MakeQuantisable, DType::kQ4_1},
  };
}

class ExecutorVariantTest : public testing::TestWithParam<Variant> {
 protected:
  static MemoryCheckpoint Make() {
    ModelSpec spec = TinySpec();
    GetParam().change(&spec);
    MemoryCheckpoint::Options options;
    options.dtype = [](Role) { return GetParam().dtype; };
    options.gguf_rope_rows = GetParam().gguf_rope_rows;
    return MemoryCheckpoint(spec, options);
  }
  static ExecutorOptions Options() {
    ExecutorOptions options = TinyOptions();
    options.kv_dtype = DType::kF32;
    options.kv_dtype_set = true;
    return options;
  }
};

TEST_P(ExecutorVariantTest, LogitsAreTheNaiveDecodersOnOneRank) {
  const MemoryCheckpoint checkpoint = Make();
  const auto ids = RandomIds(40);
  ExecutorGroup group(checkpoint, 1, 1, Options());
  Expected(checkpoint, ids).Check(LogitsInChunks(group, ids, 40));
}

TEST_P(ExecutorVariantTest, LogitsAreTheNaiveDecodersOnThreeByTwoRanks) {
  const MemoryCheckpoint checkpoint = Make();
  const auto ids = RandomIds(40);
  ExecutorGroup group(checkpoint, 3, 2, Options());
  // Layouts may differ by twice the bound.
  Expected(checkpoint, ids).Check(LogitsInChunks(group, ids, 40), 2);
}

INSTANTIATE_TEST_SUITE_P(Tiny, ExecutorVariantTest, testing::ValuesIn(Variants()),
                         [](const auto& test) { return test.param.name; });

class ExecutorLayoutTest : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(ExecutorLayoutTest, GreedyTokensAreThoseOfOneRank) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto prompt = RandomIds(20);
  ExecutorGroup single(checkpoint, 1, 1, TinyOptions());
  ExecutorGroup group(checkpoint, std::get<0>(GetParam()), std::get<1>(GetParam()), TinyOptions());
  EXPECT_EQ(Generate(group, prompt, 24), Generate(single, prompt, 24));
}

TEST_P(ExecutorLayoutTest, SampledTokensAreThoseOfOneRank) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto prompt = RandomIds(20);
  ExecutorGroup single(checkpoint, 1, 1, TinyOptions());
  ExecutorGroup group(checkpoint, std::get<0>(GetParam()), std::get<1>(GetParam()), TinyOptions());
  const auto tokens = Generate(group, prompt, 24, 1.5F, 42);
  EXPECT_EQ(tokens, Generate(single, prompt, 24, 1.5F, 42));
  EXPECT_NE(tokens, Generate(single, prompt, 24, 1.5F, 43));
}

TEST_P(ExecutorLayoutTest, LogitsLieWithinTwiceTheBound) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(40);
  ExecutorGroup group(checkpoint, std::get<0>(GetParam()), std::get<1>(GetParam()), TinyOptions());
  Expected(checkpoint, ids).Check(LogitsInChunks(group, ids, 40), 2);
}

INSTANTIATE_TEST_SUITE_P(TpByPp, ExecutorLayoutTest,
                         testing::Combine(testing::Values(1, 2, 3, 9), testing::Values(1, 2, 3)),
                         [](const auto& test) {
                           return "tp" + std::to_string(std::get<0>(test.param)) + "pp" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST(ExecutorTest, PipelineStagesChangeNoBit) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(40);
  ExecutorGroup one(checkpoint, 1, 1, TinyOptions());
  ExecutorGroup three(checkpoint, 1, 3, TinyOptions());
  EXPECT_EQ(LogitsInChunks(three, ids, 40), LogitsInChunks(one, ids, 40));
}

class ExecutorKvTest : public testing::TestWithParam<DType> {
 protected:
  static ExecutorOptions Options() {
    ExecutorOptions options = TinyOptions();
    options.kv_dtype = GetParam();
    options.kv_dtype_set = true;
    return options;
  }
};

TEST_P(ExecutorKvTest, ChunksOfAPromptChangeNoBit) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(90);
  ExecutorGroup group(checkpoint, 2, 1, Options());
  const auto whole = LogitsInChunks(group, ids, 90);
  for (int64_t chunk : {1, 7, 64}) {
    EXPECT_EQ(LogitsInChunks(group, ids, chunk), whole) << "chunks of " << chunk;
  }
}

TEST_P(ExecutorKvTest, OtherSequencesInTheBatchChangeNoBit) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, Options(), 2);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Row> alone;
  for (uint32_t slot = 0; slot < 4; ++slot) {
    prompts.push_back(RandomIds(10 + 13 * slot, slot));
    alone.push_back(LogitsInChunks(group, prompts[slot], 128).back());
  }
  BuiltPlan built;
  for (uint32_t slot = 0; slot < 4; ++slot) {
    built.Start(slot);
    // Blocks in falling order: where bytes lie must not matter.
    built.Add(slot, prompts[slot], 0, {31 - 4 * slot, 30 - 4 * slot, 29 - 4 * slot, 28 - 4 * slot});
  }
  group.KeepLogits(true);
  group.Execute(built.plan, built.ids);
  for (uint32_t slot = 0; slot < 4; ++slot) {
    EXPECT_EQ(Copy(group.last().Logits(slot)), alone[slot]) << "slot " << slot;
  }
}

INSTANTIATE_TEST_SUITE_P(KvDtypes, ExecutorKvTest,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

}  // namespace
}  // namespace pergola
