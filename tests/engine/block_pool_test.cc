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
