#include "model/layout.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelSpec SmolLm2() {
  ModelSpec spec;
  spec.layers = 30;
  spec.hidden = 576;
  spec.heads = 9;
  spec.kv_heads = 3;
  spec.head_dim = 64;
  spec.ffn = 1536;
  spec.vocabulary = 49152;
  return spec;
}

RankLayout LayoutOf(const ModelSpec& spec, int tp, int pp, int rank) {
  auto layout = MakeLayout(spec, tp, pp, rank);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return std::move(layout).value();
}

TEST(LayoutTest, SplitsNineHeadsAndThreeKvHeadsOverTwoRanks) {
  const RankLayout a = LayoutOf(SmolLm2(), 2, 1, 0);
  EXPECT_EQ(a.heads.begin, 0);
  EXPECT_EQ(a.heads.end, 5);
  EXPECT_EQ(a.kv_heads.begin, 0);
  EXPECT_EQ(a.kv_heads.end, 2);
  EXPECT_THAT(a.kv_of_head, ElementsAre(0, 0, 0, 1, 1));
  const RankLayout b = LayoutOf(SmolLm2(), 2, 1, 1);
  EXPECT_EQ(b.heads.begin, 5);
  EXPECT_EQ(b.kv_heads.begin, 1);
  EXPECT_EQ(b.kv_heads.end, 3);
  EXPECT_THAT(b.kv_of_head, ElementsAre(0, 1, 1, 1));
}

TEST(LayoutTest, KeepsKvHeadsWholeWhereRanksDivideThem) {
  for (int rank = 0; rank < 3; ++rank) {
    const RankLayout layout = LayoutOf(SmolLm2(), 3, 1, rank);
    EXPECT_EQ(layout.kv_heads.size(), 1);
    EXPECT_THAT(layout.kv_of_head, ElementsAre(0, 0, 0));
  }
}

TEST(LayoutTest, RanksAreNumberedStageByStage) {
  const RankLayout layout = LayoutOf(SmolLm2(), 2, 3, 3);
  EXPECT_EQ(layout.stage, 1);
  EXPECT_EQ(layout.tp_rank, 1);
  EXPECT_EQ(layout.RankOf(2, 0), 4);
  EXPECT_FALSE(layout.leader());
  EXPECT_FALSE(layout.first_stage());
  EXPECT_FALSE(layout.last_stage());
}

// Every TP and PP the model allows: parts are non-empty, in order and cover everything once.
TEST(LayoutTest, EveryAllowedLayoutCoversTheModelOnce) {
  const ModelSpec spec = SmolLm2();
  for (int tp = 1; tp <= spec.heads; ++tp) {
    for (int pp = 1; pp <= spec.layers; ++pp) {
      int64_t layer = 0;
      for (int stage = 0; stage < pp; ++stage) {
        int64_t head = 0, ffn = 0, vocabulary = 0;
        for (int t = 0; t < tp; ++t) {
          const RankLayout at = LayoutOf(spec, tp, pp, stage * tp + t);
          ASSERT_EQ(at.layers.begin, layer);
          ASSERT_GE(at.layers.size(), 1);
          ASSERT_EQ(at.heads.begin, head);
          ASSERT_GE(at.heads.size(), 1);
          ASSERT_EQ(at.ffn.begin, ffn);
          ASSERT_EQ(at.ffn.begin % 32, 0);
          ASSERT_GE(at.ffn.size(), 1);
          ASSERT_EQ(at.vocabulary.begin, vocabulary);
          ASSERT_GE(at.vocabulary.size(), 1);
          ASSERT_EQ(static_cast<int64_t>(at.kv_of_head.size()), at.heads.size());
          head = at.heads.end;
          ffn = at.ffn.end;
          vocabulary = at.vocabulary.end;
          if (t == tp - 1) layer = at.layers.end;
        }
        ASSERT_EQ(head, spec.heads);
        ASSERT_EQ(ffn, spec.ffn);
        ASSERT_EQ(vocabulary, spec.vocabulary);
      }
      ASSERT_EQ(layer, spec.layers);
    }
  }
}

TEST(LayoutTest, CutsAnywhereWhenTheFfnIsTooSmallForWholeGroups) {
  ModelSpec spec = SmolLm2();
  spec.ffn = 40;
  const RankLayout a = LayoutOf(spec, 3, 1, 0);
  EXPECT_EQ(a.ffn.size(), 14);
  spec.ffn = 100;  // three whole groups and a tail of four
  EXPECT_EQ(LayoutOf(spec, 3, 1, 2).ffn.size(), 36);
}

TEST(LayoutTest, GivesTheLastStageFewerLayersBecauseOfTheHead) {
  // A layer weighs 576*64*2*12 + 3*576*1536 = 3,538,944 and the head 49152*576 = 28,311,552: eight
  // layers.
  const auto stages = CutStages(SmolLm2(), 2);
  ASSERT_TRUE(stages.ok());
  EXPECT_EQ((*stages)[0].size(), 19);
  EXPECT_EQ((*stages)[1].size(), 11);
}

TEST(LayoutTest, GivesEveryStageALayerEvenIfTheHeadOutweighsAll) {
  ModelSpec spec = SmolLm2();
  spec.layers = 3;
  const auto stages = CutStages(spec, 3);
  ASSERT_TRUE(stages.ok());
  for (const Range& stage : *stages) EXPECT_EQ(stage.size(), 1);
}

struct Refusal {
  int tp, pp, rank;
  const char* text;
};

TEST(LayoutTest, RefusesWhatTheModelCannotTakeWithValueAndLimit) {
  for (const Refusal& refusal :
       {Refusal{10, 1, 0, "tensor parallel is 10; this model allows 1 to 9 (its heads)"},
        Refusal{0, 1, 0, "tensor parallel is 0"},
        Refusal{1, 31, 0, "pipeline parallel is 31; this model allows 1 to 30 (its layers)"},
        Refusal{1, 0, 0, "pipeline parallel is 0"}, Refusal{2, 2, 4, "rank 4 is outside 0 to 3"},
        Refusal{2, 2, -1, "rank -1 is outside"}}) {
    const auto layout = MakeLayout(SmolLm2(), refusal.tp, refusal.pp, refusal.rank);
    ASSERT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(layout.status().message()), HasSubstr(refusal.text));
  }
}

TEST(LayoutTest, RefusesMoreRanksThanFfnRowsOrTokens) {
  ModelSpec spec = SmolLm2();
  spec.ffn = 4;
  EXPECT_THAT(std::string(MakeLayout(spec, 5, 1, 0).status().message()), HasSubstr("FFN size"));
  spec = SmolLm2();
  spec.vocabulary = 3;
  EXPECT_THAT(std::string(MakeLayout(spec, 5, 1, 0).status().message()), HasSubstr("vocabulary"));
}

TEST(LayoutTest, RefusesKvHeadsThatDoNotDivideTheHeads) {
  ModelSpec spec = SmolLm2();
  spec.kv_heads = 2;
  EXPECT_EQ(MakeLayout(spec, 1, 1, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace pergola
