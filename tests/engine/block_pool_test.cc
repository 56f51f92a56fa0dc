#include "coordinator/engine/block_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace pergola {
namespace {

TEST(BlockPoolTest, GivesEveryBlockOnce) {
  BlockPool pool(5);
  std::vector<uint32_t> blocks;
  ASSERT_TRUE(pool.Take(2, &blocks));
  ASSERT_TRUE(pool.Take(3, &blocks));
  EXPECT_EQ(std::set<uint32_t>(blocks.begin(), blocks.end()).size(), 5U);
  EXPECT_EQ(pool.free_count(), 0U);
  EXPECT_EQ(pool.used_count(), 5U);
}

TEST(BlockPoolTest, TakesNothingWhenTooFewAreFree) {
  BlockPool pool(3);
  std::vector<uint32_t> blocks;
  EXPECT_FALSE(pool.Take(4, &blocks));
  EXPECT_TRUE(blocks.empty());
  EXPECT_EQ(pool.free_count(), 3U);
}

TEST(BlockPoolTest, ReturnedBlocksAreFreeAgain) {
  BlockPool pool(2);
  std::vector<uint32_t> blocks;
  ASSERT_TRUE(pool.Take(2, &blocks));
  pool.Return(&blocks);
  EXPECT_TRUE(blocks.empty());
  EXPECT_EQ(pool.used_count(), 0U);
  EXPECT_TRUE(pool.Take(2, &blocks));
}

TEST(BlockPoolTest, ASharedBlockIsFreeWhenTheLastReferenceIsGivenBack) {
  BlockPool pool(2);
  std::vector<uint32_t> first;
  ASSERT_TRUE(pool.Take(1, &first));
  std::vector<uint32_t> second = first;
  pool.Share(second[0]);
  EXPECT_EQ(pool.references(second[0]), 2U);
  pool.Return(&first);
  EXPECT_EQ(pool.used_count(), 1U);
  pool.Return(&second);
  EXPECT_EQ(pool.used_count(), 0U);
  EXPECT_EQ(pool.cached_count(), 0U) << "its content was never published";
}

TEST(BlockPoolTest, KeepsPublishedContentUntilTheBlockIsNeeded) {
  BlockPool pool(3);
  std::vector<uint32_t> blocks;
  ASSERT_TRUE(pool.Take(2, &blocks));
  const uint32_t kept = blocks[0];
  pool.Publish({1, 1}, kept);
  pool.Return(&blocks);
  EXPECT_EQ(pool.cached_count(), 1U);
  EXPECT_EQ(pool.free_count(), 3U) << "a cached block counts as free";
  ASSERT_TRUE(pool.Take(2, &blocks));
  EXPECT_EQ(pool.Find({1, 1}), kept) << "empty blocks are taken first";
  ASSERT_TRUE(pool.Take(1, &blocks));
  EXPECT_EQ(blocks.back(), kept);
  EXPECT_FALSE(pool.Find({1, 1}).has_value());
}

TEST(BlockPoolTest, AChainLosesItsEndFirst) {
  BlockPool pool(3);
  std::vector<uint32_t> chain;
  ASSERT_TRUE(pool.Take(3, &chain));
  for (uint32_t i = 0; i < 3; ++i) pool.Publish({i, 1}, chain[i]);
  pool.Return(&chain);
  std::vector<uint32_t> taken;
  ASSERT_TRUE(pool.Take(2, &taken));
  EXPECT_TRUE(pool.Find({0, 1}).has_value());
  EXPECT_FALSE(pool.Find({1, 1}).has_value());
  EXPECT_FALSE(pool.Find({2, 1}).has_value());
}

TEST(BlockPoolTest, ASharedCachedBlockIsNotTakenFromItsUser) {
  BlockPool pool(1);
  std::vector<uint32_t> blocks;
  ASSERT_TRUE(pool.Take(1, &blocks));
  pool.Publish({1, 1}, blocks[0]);
  pool.Return(&blocks);
  pool.Share(0);
  EXPECT_EQ(pool.free_count(), 0U);
  EXPECT_FALSE(pool.Take(1, &blocks));
}

TEST(BlockPoolDeathTest, RefusesToShareAnEmptyBlock) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.Share(1), "block 1");
}

TEST(BlockPoolDeathTest, RefusesABlockThatIsFreeAlready) {
  BlockPool pool(2);
  std::vector<uint32_t> never_taken = {1};
  EXPECT_DEATH(pool.Return(&never_taken), "block 1");
}

TEST(BlockPoolDeathTest, RefusesABlockThatDoesNotExist) {
  BlockPool pool(2);
  std::vector<uint32_t> unknown = {7};
  EXPECT_DEATH(pool.Return(&unknown), "block 7");
}

}  // namespace
}  // namespace pergola
