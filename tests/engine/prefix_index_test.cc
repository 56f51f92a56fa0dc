#include "coordinator/engine/prefix_index.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"

namespace pergola {
namespace {

const PrefixKey kSecret = {0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL};

std::string Hex(const PrefixKey& key) {
  std::string text;
  for (const uint64_t half : {key.low, key.high}) {
    for (int byte = 0; byte < 8; ++byte) {
      absl::StrAppend(&text, absl::Hex(half >> (8 * byte) & 0xFF, absl::kZeroPad2));
    }
  }
  return text;
}

// Expected: openssl mac -macopt hexkey:000102...0f -macopt size:16 -in FILE SipHash; the first is
// also the first of the paper's authors' vectors_sip128.
TEST(PrefixKeyTest, IsSipHashWith128Bits) {
  struct Case {
    size_t size;
    const char* hash;
  };
  const Case cases[] = {
      {0, "a3817f04ba25a8e66df67214c7550293"},  {1, "da87c1d86b99af44347659119b22fc45"},
      {8, "3b62a9ba6258f5610f83e264f31497b4"},  {15, "5493e99933b0a8117e08ec0f97cfc3d9"},
      {63, "5150d1772f50834a503e069a973fbd7c"},
  };
  uint8_t bytes[64];
  std::iota(bytes, bytes + 64, uint8_t{0});
  for (const Case& one : cases) {
    EXPECT_EQ(Hex(SipHash128(kSecret, bytes, one.size)), one.hash) << one.size;
  }
}

TEST(PrefixKeyTest, DependsOnSecretTenantPredecessorAndEveryId) {
  const int32_t ids[16] = {1, 2, 3};
  const PrefixKey root = PrefixRoot(kSecret, "a");
  const PrefixKey key = PrefixNext(kSecret, root, ids, 16);
  EXPECT_EQ(key, PrefixNext(kSecret, root, ids, 16));
  EXPECT_FALSE(key == PrefixNext({1, 2}, root, ids, 16));
  EXPECT_FALSE(key == PrefixNext(kSecret, PrefixRoot(kSecret, "b"), ids, 16));
  EXPECT_FALSE(key == PrefixNext(kSecret, key, ids, 16));
  for (int i = 0; i < 16; ++i) {
    int32_t other[16];
    std::copy(ids, ids + 16, other);
    other[i] ^= 1;
    EXPECT_FALSE(key == PrefixNext(kSecret, root, other, 16)) << i;
  }
}

TEST(PrefixIndexTest, FindsWhatWasInserted) {
  PrefixIndex index(4);
  EXPECT_FALSE(index.Find({1, 1}).has_value());
  EXPECT_TRUE(index.Insert({1, 1}, 2));
  EXPECT_EQ(index.Find({1, 1}), 2U);
  EXPECT_FALSE(index.Find({1, 2}).has_value()) << "half of a key is no key";
  EXPECT_TRUE(index.Contains(2));
  EXPECT_FALSE(index.Contains(1));
}

TEST(PrefixIndexTest, KeepsTheFirstOfTwoBlocksWithOneContent) {
  PrefixIndex index(4);
  EXPECT_TRUE(index.Insert({1, 1}, 2));
  EXPECT_FALSE(index.Insert({1, 1}, 3));
  EXPECT_EQ(index.Find({1, 1}), 2U);
  EXPECT_FALSE(index.Contains(3));
}

TEST(PrefixIndexTest, EvictsTheBlockThatIsIdleLongest) {
  PrefixIndex index(4);
  for (uint32_t block = 0; block < 4; ++block) index.Insert({block, 0}, block);
  EXPECT_FALSE(index.Evict().has_value()) << "nothing is idle";
  index.Idle(2);
  index.Idle(0);
  index.Idle(3);
  index.Busy(2);
  index.Idle(2);
  EXPECT_EQ(index.idle_count(), 3U);
  EXPECT_EQ(index.Evict(), 0U);
  EXPECT_EQ(index.Evict(), 3U);
  EXPECT_EQ(index.Evict(), 2U);
  EXPECT_FALSE(index.Evict().has_value());
  EXPECT_FALSE(index.Find({2, 0}).has_value());
  EXPECT_EQ(index.size(), 1U);
}

TEST(PrefixIndexDeathTest, RefusesABlockThatIsIdleTwiceOrWasNeverEntered) {
  PrefixIndex index(2);
  EXPECT_DEATH(index.Idle(1), "block 1");
  index.Insert({1, 1}, 1);
  EXPECT_DEATH(index.Insert({2, 2}, 1), "block 1");
  EXPECT_DEATH(index.Busy(1), "block 1");
}

}  // namespace
}  // namespace pergola
