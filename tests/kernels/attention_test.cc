#include <limits>
#include <tuple>

#include "kernels/decoder_ops.h"
#include "tests/kernels/attention_scene.h"
#include "tests/kernels/compare.h"

namespace pergola {
namespace {

using Shape = AttentionShape;
using Scene = AttentionScene;

std::vector<float> Attend(Scene* scene, CpuTarget target, int64_t begin, int64_t end,
                          int threads = 2) {
  std::vector<float> out;
  const AttentionArgs args = scene->Args(begin, end, &out);
  const auto stream = MakeStream(target, threads);
  PagedAttention(*stream, args);
  return out;
}

// A relative error e of every weight moves a weighted mean by at most 2 e times the mean of |v|. A
// weight's e is the error of its score (a chain of head_dim products, the scaling of q, the
// difference to the largest; |score| and the difference are below 40 here, checked) plus, per tile,
// an exponential (2 ulp = 4 u) of a difference; then T additions.
double ErrorOfWeights(const Scene& s) {
  const double longest = static_cast<double>(*std::max_element(s.lengths.begin(), s.lengths.end()));
  const auto dim = static_cast<double>(s.shape.head_dim);
  // sum |q k| scale <= dim * 5 * 5 * scale for normal values within five deviations; typical sums
  // are dim * 0.64.
  const double score = (dim + 2) * kUnit * dim * static_cast<double>(s.scale);
  const double tiles = longest / static_cast<double>(s.shape.block_tokens) + 1;
  return 2 * score + (tiles + 1) * (4 + 40 + 1) * kUnit + (longest + 3) * kUnit;
}

class AttentionTest : public testing::TestWithParam<std::tuple<CpuTarget, DType>> {
 protected:
  CpuTarget target() const { return std::get<0>(GetParam()); }
  Shape shape() const {
    Shape shape;
    shape.kv_dtype = std::get<1>(GetParam());
    return shape;
  }
  void ExpectNearReference(Scene scene) const {
    const int64_t rows = scene.Rows();
    std::vector<float> want;
    PagedAttentionRef(scene.Args(0, rows, &want));
    // The largest |v| bounds the mean of |v|.
    double largest = 0;
    const int64_t values = static_cast<int64_t>(scene.v.size()) / BlockBytes(scene.shape.kv_dtype);
    std::vector<float> v(static_cast<size_t>(values));
    DecodeToF32(scene.shape.kv_dtype, scene.v.data(), values, v.data());
    for (float x : v) largest = std::max(largest, std::abs(static_cast<double>(x)));
    const double bound = 2 * ErrorOfWeights(scene) * largest + kUnit * largest;
    EXPECT_TRUE(
        CompareWith(Attend(&scene, target(), 0, rows), want, [&](size_t) { return bound; }));
  }
};

TEST_P(AttentionTest, AgreesWithTheReference) {
  SKIP_WITHOUT(target());
  ExpectNearReference(MakeScene(shape(), {1, 33, 70}));
}

TEST_P(AttentionTest, AgreesForUnevenHeadsAndOddHeadSizes) {
  SKIP_WITHOUT(target());
  for (int64_t head_dim : {2, 36, 80, 128}) {
    Shape s = shape();
    s.heads = 9;
    s.kv_heads = 3;
    s.head_dim = head_dim;
    ExpectNearReference(MakeScene(s, {5, 40}));
    s.heads = 5;  // runs of 2, 2 and 1 heads: not a ratio
    ExpectNearReference(MakeScene(s, {5, 40}));
  }
}

TEST_P(AttentionTest, AgreesForEveryBlockSize) {
  SKIP_WITHOUT(target());
  for (int64_t block_tokens : {16, 64, 128}) {
    Shape s = shape();
    s.block_tokens = block_tokens;
    ExpectNearReference(MakeScene(s, {20, 130}));
  }
}

TEST_P(AttentionTest, AgreesWithinAWindow) {
  SKIP_WITHOUT(target());
  for (int64_t window : {1, 7, 32, 50}) {
    Shape s = shape();
    s.window = window;
    ExpectNearReference(MakeScene(s, {3, 100}));
  }
}

// Adding slope * distance, at most 3 * 100 here, errs by one rounding of a sum that is at most 340.
// Only keys whose p is above 2^-24 count: their distance term is within 40 + 2 * 40 of the largest
// score, so that the rounding is below the 120 u that ErrorOfWeights' 45 per tile (of which there
// are several) and its factor two leave room for.
TEST_P(AttentionTest, AgreesWithSlopes) {
  SKIP_WITHOUT(target());
  for (int64_t window : {0, 20}) {
    Shape s = shape();
    s.heads = 6;
    s.kv_heads = 3;
    s.window = window;
    Scene scene = MakeScene(s, {3, 100});
    scene.slopes = {3.0F, 0.5F, 0.03F, 0.25F, 0.0F, 0.9F};
    ExpectNearReference(scene);
  }
}

TEST_P(AttentionTest, ASlopeMovesWeightToNearKeys) {
  SKIP_WITHOUT(target());
  Scene scene = MakeScene(shape(), {40});
  scene.slopes = {200.0F, 200.0F, 200.0F, 200.0F};
  const auto got = Attend(&scene, target(), 39, 40);
  std::vector<float> newest(64);
  for (int64_t head = 0; head < 4; ++head) {
    DecodeToF32(scene.shape.kv_dtype, scene.CacheAt(&scene.v, 0, 39, head / 2), 64, newest.data());
    EXPECT_TRUE(CompareBits({got.begin() + head * 64, got.begin() + (head + 1) * 64}, newest));
  }
}

TEST_P(AttentionTest, ManyHeadsMayShareOneKvHead) {
  SKIP_WITHOUT(target());
  Shape s = shape();
  s.heads = 71;
  s.kv_heads = 1;
  s.head_dim = 16;
  ExpectNearReference(MakeScene(s, {37}));
}

TEST_P(AttentionTest, UnwrittenPositionsDoNotMatter) {
  SKIP_WITHOUT(target());
  Scene scene = MakeScene(shape(), {40});
  const auto want = Attend(&scene, target(), 0, 40);
  // All bits set is a NaN in each of the dtypes.
  for (int64_t p = 40; p < scene.table_stride * 32; ++p) {
    for (int64_t h = 0; h < scene.shape.kv_heads; ++h) {
      const auto bytes = static_cast<size_t>(DTypeBytes(scene.shape.kv_dtype, 64));
      std::memset(scene.CacheAt(&scene.k, 0, p, h), 0xff, bytes);
      std::memset(scene.CacheAt(&scene.v, 0, p, h), 0xff, bytes);
    }
  }
  EXPECT_TRUE(CompareBits(Attend(&scene, target(), 0, 40), want));
}

TEST_P(AttentionTest, NaNReachesTheRowsThatSeeItAndNoOther) {
  SKIP_WITHOUT(target());
  for (const bool in_value : {false, true}) {
    Scene scene = MakeScene(shape(), {40, 40});
    const auto want = Attend(&scene, target(), 0, 80);
    std::vector<uint8_t>* cache = in_value ? &scene.v : &scene.k;
    std::memset(scene.CacheAt(cache, 0, 20, 0), 0xff,
                static_cast<size_t>(DTypeBytes(scene.shape.kv_dtype, 64)));
    const auto got = Attend(&scene, target(), 0, 80);
    for (int64_t i = 0; i < 80 * 4 * 64; ++i) {
      const int64_t row = i / (4 * 64), head = i / 64 % 4;
      const bool sees = row >= 20 && row < 40 && head < 2;
      ASSERT_EQ(std::isnan(got[i]), sees) << "row " << row << " head " << head;
      if (!sees) {
        ASSERT_TRUE(SameBits(got[i], want[i])) << "row " << row << " head " << head;
      }
    }
  }
}

std::string TargetAndType(const testing::TestParamInfo<std::tuple<CpuTarget, DType>>& info) {
  return std::string(CpuTargetName(std::get<0>(info.param))) + "_" +
         std::string(DTypeName(std::get<1>(info.param)));
}

constexpr DType kKvTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
INSTANTIATE_TEST_SUITE_P(Targets, AttentionTest,
                         testing::Combine(testing::ValuesIn(kAllTargets),
                                          testing::ValuesIn(kKvTypes)),
                         TargetAndType);

class AttentionBitsTest : public AttentionTest {};

TEST_P(AttentionBitsTest, ChunksDoNotChangeBits) {
  SKIP_WITHOUT(target());
  for (int64_t window : {0, 45}) {
    Shape s = shape();
    s.window = window;
    const int64_t length = target() == CpuTarget::kPortable ? 100 : 520;
    Scene scene = MakeScene(s, {length});
    if (window > 0) scene.slopes = {0.5F, 0.25F, 0.125F, 0.01F};
    const auto want = Attend(&scene, target(), 0, length, 1);
    for (int64_t chunk : {1, 7, 64, 512}) {
      std::vector<float> got;
      for (int64_t begin = 0; begin < length; begin += chunk) {
        const auto part = Attend(&scene, target(), begin, std::min(begin + chunk, length), 1);
        got.insert(got.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(CompareBits(got, want)) << "chunk " << chunk << ", window " << window;
    }
  }
}

TEST_P(AttentionBitsTest, ThreadsDoNotChangeBits) {
  SKIP_WITHOUT(target());
  Scene scene = MakeScene(shape(), {1, 50, 33});
  const auto want = Attend(&scene, target(), 0, 84, 1);
  for (int threads : {2, 3}) {
    EXPECT_TRUE(CompareBits(Attend(&scene, target(), 0, 84, threads), want));
  }
}

TEST_P(AttentionBitsTest, TargetsAgree) {
  SKIP_WITHOUT(target());
  for (int64_t head_dim : {36, 64}) {
    Shape s = shape();
    s.head_dim = head_dim;
    Scene scene = MakeScene(s, {70});
    if (head_dim == 36) scene.slopes = {0.5F, 0.25F, 0.125F, 0.01F};
    EXPECT_TRUE(
        CompareBits(Attend(&scene, target(), 0, 70), Attend(&scene, CpuTarget::kPortable, 0, 70)));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, AttentionBitsTest,
                         testing::Combine(testing::ValuesIn(kFastTargets),
                                          testing::ValuesIn(kKvTypes)),
                         TargetAndType);

}  // namespace
}  // namespace pergola
