#include "kernels/attention_work.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

AttentionPlan Plan(const std::vector<int32_t>& positions, const std::vector<int32_t>& tables) {
  AttentionPlan plan;
  plan.longest_context = 99;
  plan.decode_rows = {1, 2, 3};
  PlanAttention(positions.data(), tables.data(), static_cast<int64_t>(positions.size()), &plan);
  return plan;
}

// `length` positions from `first` on.
void Append(int32_t first, int32_t length, int32_t table, std::vector<int32_t>* positions,
            std::vector<int32_t>* tables) {
  for (int32_t i = 0; i < length; ++i) {
    positions->push_back(first + i);
    tables->push_back(table);
  }
}

TEST(AttentionWorkTest, SingleTokensAreDecodeRows) {
  const AttentionPlan plan = Plan({7, 300, 8}, {0, 1, 2});
  EXPECT_THAT(plan.decode_rows, ElementsAre(0, 1, 2));
  EXPECT_THAT(plan.prefill_tiles, IsEmpty());
  EXPECT_EQ(plan.longest_context, 301);
}

TEST(AttentionWorkTest, LongRunsBecomeTilesAndShortOnesDecodeRows) {
  std::vector<int32_t> positions, tables;
  Append(0, 300, 0, &positions, &tables);
  Append(40, static_cast<int32_t>(kDecodeRunRows), 1, &positions, &tables);
  Append(50, static_cast<int32_t>(kDecodeRunRows) + 1, 2, &positions, &tables);
  const AttentionPlan plan = Plan(positions, tables);
  EXPECT_THAT(plan.prefill_tiles, ElementsAre(0, 128, 128, 128, 256, 44, 308, 9));
  EXPECT_THAT(plan.decode_rows, ElementsAre(300, 301, 302, 303, 304, 305, 306, 307));
  EXPECT_EQ(plan.longest_context, 48);
  EXPECT_EQ(plan.longest_prompt, 300);
}

TEST(AttentionWorkTest, ATileNeverSpansSequencesOrGaps) {
  std::vector<int32_t> positions, tables;
  Append(0, 20, 0, &positions, &tables);
  Append(20, 20, 1, &positions, &tables);  // the positions go on, the sequence does not
  Append(41, 20, 1, &positions, &tables);
  EXPECT_THAT(Plan(positions, tables).prefill_tiles, ElementsAre(0, 20, 20, 20, 40, 20));
}

TEST(AttentionWorkTest, PaddingIsLeftOut) {
  std::vector<int32_t> positions = {-1, -1}, tables = {0, 0};
  Append(0, 12, 0, &positions, &tables);  // goes on from -1
  positions.push_back(-1);
  tables.push_back(0);
  const AttentionPlan plan = Plan(positions, tables);
  EXPECT_THAT(plan.prefill_tiles, ElementsAre(2, 12));
  EXPECT_THAT(plan.decode_rows, IsEmpty());
  EXPECT_EQ(plan.longest_context, 0);
}

TEST(AttentionWorkTest, HeadGroupsAreRunsOfOneKvHead) {
  const std::vector<int32_t> kv_of_head = {0, 0, 0, 1, 1, 2};
  EXPECT_THAT(PlanHeadGroups(kv_of_head.data(), 6), ElementsAre(0, 3, 3, 2, 5, 1));
  EXPECT_EQ(LargestHeadGroup({0, 3, 3, 2, 5, 1}), 3);
  EXPECT_EQ(LargestHeadGroup({}), 0);
}

TEST(AttentionWorkTest, LongHeadGroupsAreCutEvenly) {
  const std::vector<int32_t> kv_of_head(71, 0);
  EXPECT_THAT(PlanHeadGroups(kv_of_head.data(), 64), ElementsAre(0, 64));
  EXPECT_THAT(PlanHeadGroups(kv_of_head.data(), 71), ElementsAre(0, 36, 36, 35));
}

TEST(AttentionWorkTest, FewRowsAreSplitToFillTheDevice) {
  // 8 KV heads of one row on 132 multiprocessors with two places each: 29 parts fill 88 %.
  EXPECT_EQ(DecodeParts(132, 8, 1000), 29);
  EXPECT_EQ(DecodeParts(132, 1, 100000), 109);  // 85 % of the most
  EXPECT_EQ(DecodeParts(1, 1, 100000), 2);
  EXPECT_EQ(DecodeParts(132, 8, 10), 5);  // two tiles each
  EXPECT_EQ(DecodeParts(132, 8, 1), 1);
  EXPECT_EQ(DecodeParts(132, 264, 1000), 1);
  EXPECT_EQ(DecodeParts(132, 10000, 1000), 1);
  EXPECT_EQ(DecodeParts(132, 0, 0), 1);
}

TEST(AttentionWorkTest, FewBlocksOfAPromptAreSplitIntoOneWave) {
  // 512 rows of 4 heads that share one KV head: 16 blocks for 264 places.
  EXPECT_EQ(PrefillParts(132, 16, 512), 16);
  EXPECT_EQ(PrefillParts(132, 16, 20), 5);  // four tiles each
  EXPECT_EQ(PrefillParts(132, 16, 3), 1);
  EXPECT_EQ(PrefillParts(132, 132, 512), 2);
  EXPECT_EQ(PrefillParts(132, 133, 512), 1);
  EXPECT_EQ(PrefillParts(132, 1, 100000), kMaxPrefillParts);
  EXPECT_EQ(PrefillParts(132, 0, 0), 1);
  EXPECT_EQ(LargestPrefillParts(132), 264);
}

TEST(AttentionWorkTest, PartsKeepTheirBound) {
  for (const int multiprocessors : {1, 40, 108, 132}) {
    for (int64_t units = 1; units < 3000; units += 7) {
      for (const int64_t tiles : {1, 2, 3, 17, 2048}) {
        const int64_t parts = DecodeParts(multiprocessors, units, tiles);
        ASSERT_GE(parts, 1);
        ASSERT_LE(parts, kMaxDecodeParts);
        if (parts > 1) {
          ASSERT_LE(parts * units, LargestDecodeParts(multiprocessors));
        }
      }
    }
  }
}

}  // namespace
}  // namespace pergola
